"""The whole pipeline on tiny random models of five architectures, and its promises on resuming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml

import nacd
from nacd.config import (
    TABLE_ROWS,
    DataConfig,
    DistillConfig,
    ExpertConfig,
    OuterLoopConfig,
)
from nacd.config.recipe import Recipe, recipe_of
from nacd.config.settings import to_dict
from nacd.data import make_template, read_examples
from nacd.data.rows import Rows
from nacd.distillation.learn import Distiller
from nacd.distillation.outer import OuterLoop
from nacd.errors import UserError
from nacd.export import read_soft_prompts
from nacd.model.lora import ModelConfig, load_model
from nacd.model.prepare import prepare
from nacd.store.folder import read_run
from nacd.terminal.progress import Progress
from nacd.training.student import TUNING_SEED, mean_nll, train_student
from nacd.training.tuning import Found, Setting, Tried
from tiny import ARCHITECTURES

Folder = Callable[[str], Path]
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows: name a thing's colour."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    things = ["fox", "plant", "water", "food", "sun", "dog", "name", "question"]
    colours = ["red", "green", "blue", "brown", "the answer"]
    lines = [
        {"instruction": f"Which colour has this {thing}, number {i}?", "output": colour}
        for i, thing in enumerate(things)
        for colour in colours
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def config(model: Path, data: Path, out: Path) -> DistillConfig:
    return DistillConfig(
        out=out,
        budget="4",
        trainings=2,
        model=ModelConfig(model=str(model), lora_rank=2),
        data=DataConfig(data=str(data), target_rows=4, template="alpaca"),
        recipe=Recipe(batch_size=2, epochs=2, learning_rate=5e-3, shuffle=False),
        expert=ExpertConfig(expert_batch=8, snapshot_every=1),
        outer=OuterLoopConfig(outer_steps=3, check_every=2, engine="exact", step_size=1.0),
    )


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=[pytest.mark.slow] * (a != "llama")) for a in ARCHITECTURES]
)
def test_from_a_file_to_text_and_a_table(
    arch: str, tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    run = config(tiny_folder(arch), rows, tmp_path / "run")
    result = nacd.distill(run, progress=QUIET)
    shown = {row["method"] for row in result.table}
    assert shown >= {*TABLE_ROWS, "full-equal-steps", "seeds-shuffled", "text-shuffled"}
    assert all(torch.isfinite(torch.tensor(row["report_nll"])) for row in result.table)
    table = {row["method"]: row for row in result.table}
    assert table["zero-shot"]["trainings"] == 1
    assert table["seeds"]["trainings"] == 2
    # Rows in their own order differ by LoRA's initial values alone; full data has no order to keep.
    cells = tmp_path / "run" / "ladder"
    nll = {f.stem: json.loads(f.read_text())["report_nll"] for f in cells.glob("seeds*.json")}
    assert len(set(nll.values())) == 4
    card = (result.dataset / "README.md").read_text()
    assert "--no-shuffle" in card
    assert "in the order of the file" in card
    # The exported rows load unchanged, and are exactly what the inner loop trained on.
    cache = str(tmp_path / "cache")
    loaded: Any = datasets.load_dataset(str(result.dataset), cache_dir=cache, split="train")
    assert len(loaded) == 4
    assert set(loaded.column_names) >= {"prompt", "completion", "seed_row", "tokens_changed"}
    model = load_model(run.model)
    again = read_examples(str(result.dataset / "train.jsonl"))
    template = make_template("auto", model.tokenizer, again)
    tokenizer: Any = model.tokenizer
    texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in loaded]
    assert [list(template.encode(e).ids) for e in again] == tokenizer(texts)["input_ids"]
    metrics = (tmp_path / "run" / "distill" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["outer_step"] for line in metrics] == [0, 1, 2, 3]
    assert "soft_to_text_gap" in json.loads(metrics[-1])
    agreed = json.loads((tmp_path / "run" / "agreement.json").read_text())
    assert agreed["said"].startswith("Agreement: the meta-gradients of 3 inner")
    assert "tokens_changed" in json.loads(metrics[-1])


@pytest.mark.parametrize(
    ("objective", "projection"),
    [
        pytest.param(o, p, marks=[pytest.mark.slow] * ((o, p) != ("trajectory", "nearest")))
        for o in ("target-loss", "train-loss", "trajectory")
        for p in ("nearest", "straight-through", "simplex")
    ],
)
def test_objectives_and_projections(
    objective: str, projection: str, tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    base = config(tiny_folder("llama"), rows, tmp_path / "run")
    named: dict[str, Any] = {"objective": objective, "projection": projection, "expert_start": 2}
    base = replace(
        base,
        outer=replace(base.outer, beta=0.1, **named),
        recipe=replace(base.recipe, shuffle=True),
        compare=("seeds", "text"),
    )
    result = nacd.distill(base, progress=QUIET)
    assert (tmp_path / "run" / "experts").exists() == (objective == "trajectory")
    assert {"seeds", "text"} <= {row["method"] for row in result.table}


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which every second has a prefix of two tokens that merges with its own prompt."""
    file = tmp_path_factory.mktemp("data") / "merging.jsonl"
    names = ("h t, number", "a fox, number")
    lines = [{"instruction": f"{names[i % 2]} {i}?", "output": f"name {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def prefixed(model: Path, data: Path, out: Path, steps: int) -> DistillConfig:
    base = config(model, data, out)
    outer = replace(base.outer, learn="prefix:2", outer_steps=steps, step_size=5.0, check_every=1)
    data_config = replace(base.data, template="chat")
    return replace(
        base, data=data_config, budget="8", compare=("seeds", "soft", "text"), outer=outer
    )


def exported(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "dataset" / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_prefix_that_learned_nothing_leaves_the_real_rows(
    tiny_folder: Folder, merging: Path, tmp_path: Path
) -> None:
    """In the export, on the card, in the table, and where the learning rate is tuned."""
    run = prefixed(tiny_folder("llama"), merging, tmp_path / "run", 0)
    run = replace(run, tune_rates=(2e-3, 5e-3))
    result = nacd.distill(run, progress=QUIET)
    real = {e.digest: e for e in read_examples(str(merging))}
    rows = exported(run.out)
    assert len(rows) == 8
    for row in rows:
        own = real[row["seed_digest"]]
        assert row["prompt"] == [{"role": "user", "content": own.prompt}]
        assert row["completion"] == [{"role": "assistant", "content": own.response}]
        assert row["tokens_changed"] == 0.0
    assert "exported rows are the starting rows" in result.verdict
    assert "These rows are the starting rows." in (result.dataset / "README.md").read_text()

    model = load_model(run.model)
    seeds = [real[row["seed_digest"]] for row in rows]
    template = make_template("chat", model.tokenizer, seeds)
    encoded = [template.encode(seed, turns="last") for seed in seeds]
    table = {row["method"]: row for row in result.table}
    assert table["seeds"]["tokens"] == table["text"]["tokens"] == sum(map(len, encoded))
    assert table["text"]["report_nll"] == table["seeds"]["report_nll"]
    development = prepare(run.model, run.data).development.rows
    tuning = json.loads((run.out / "tuning.json").read_text())
    for rate, nll in tuning["nll"]:
        tried = replace(run.recipe, learning_rate=rate)
        theta = train_student(model, tried, Rows.of(encoded, 0), TUNING_SEED)
        assert nll == pytest.approx(mean_nll(model, theta, development), rel=1e-6)

    soft = read_soft_prompts(run.out / "soft_prompts.safetensors")
    assert soft.metadata["outer_step"] == "0"
    assert float(soft.metadata["learning_rate"]) == tuning["learning_rate"]
    for slots, row in zip(soft.rows, encoded, strict=True):
        assert [slot for slot in slots if slot < 0] == [-1] * len(row), "the seed, and its prefix"
        assert len(slots) == len(row) + 2


def test_a_tuned_recipe_is_that_of_learning_table_card_and_page(
    tiny_folder: Folder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[Any] = []

    def search(score: Any, **_: Any) -> Found:
        scores.append(score(Setting(3.0, 2e-3), 0).mean)
        return Found(Setting(3.0, 2e-3), (Tried(2e-3, 3.0, scores[-1], 1),), True, ("A note.",))

    monkeypatch.setattr("nacd.training.tuning.search", search)
    run = replace(config(tiny_folder("llama"), rows, tmp_path / "run"), tune=True)
    run = replace(run, compare=("seeds", "full"), trainings=1)
    result = nacd.distill(run, progress=QUIET)
    nacd.distill(run, progress=QUIET)
    assert len(scores) == 1, "found once"
    steps = {row["method"]: row["steps"] for row in result.table}
    assert steps["seeds"] == steps["full-equal-steps"] == 6, "two steps an epoch"
    card = (result.dataset / "README.md").read_text()
    assert "learning rate 0.002, 3 epochs, validation NLL" in card
    assert "--learning-rate 0.002 --batch-size 2 --epochs 3" in card
    assert recipe_of(read_run(run.out)) == replace(run.recipe, learning_rate=2e-3, epochs=3.0)
    # what was found was found on the starting rows, as they are exported
    prepared = prepare(run.model, run.data)
    real = {example.digest: example for example in prepared.train.examples}
    own = [real[row["seed_digest"]] for row in exported(run.out)]
    data = Rows.of([prepared.template.encode(e, turns="last") for e in own], 0)
    recipe = Recipe(batch_size=2, epochs=3, learning_rate=2e-3)
    theta = train_student(prepared.model, recipe, data, TUNING_SEED)
    nll = mean_nll(prepared.model, theta, prepared.development.rows)
    assert scores[0] == pytest.approx(nll, rel=1e-6)


def test_a_learned_prefix_where_some_do_not_survive(
    tiny_folder: Folder, merging: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prefixed(tiny_folder("llama"), merging, tmp_path / "run", 2)
    nacd.distill(replace(run, compare=("seeds", "text")), progress=Progress())
    said = capsys.readouterr().err
    assert "of 8 starting rows do not come back from their own tokens" in said
    metrics = (run.out / "distill" / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(metrics[-1])["tokens_changed"] < 1
    soft = read_soft_prompts(run.out / "soft_prompts.safetensors")
    assert len(soft.vectors) == 8 * 2
    real = {e.digest: e for e in read_examples(str(merging))}
    for row in exported(run.out):
        own, prompt = real[row["seed_digest"]].prompt, row["prompt"][-1]["content"]
        assert prompt.endswith(own)
        assert row["tokens_changed"] == float(prompt != own)
        assert prompt == own or not own.startswith("h t")


class Killed(BaseException):
    """As good as a kill: nothing may catch it."""


def files(folder: Path) -> dict[str, bytes]:
    """What a run promises to repeat bit for bit."""
    kept = [*folder.glob("distill/state.safetensors"), *folder.glob("experts/*/step-*")]
    kept += [folder / "soft_prompts.safetensors", folder / "dataset" / "train.jsonl"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


@pytest.mark.parametrize(
    "stop_at", [pytest.param(s, marks=[pytest.mark.slow] * (s != 2)) for s in (0, 1, 2)]
)
def test_resume_gives_the_same_bits(
    stop_at: int,
    tiny_folder: Folder,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = config(tiny_folder("llama"), rows, tmp_path / "whole")
    base = replace(base, compare=("seeds", "text"), trainings=1)
    nacd.distill(base, progress=QUIET)
    step = OuterLoop.step

    def killed(self: OuterLoop, segments: object) -> dict[str, float]:
        if self.done == stop_at:
            raise Killed
        return step(self, segments)  # pyright: ignore[reportArgumentType]

    stopped = replace(base, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(OuterLoop, "step", killed)
        with pytest.raises(Killed):
            nacd.distill(stopped, progress=QUIET)
    with monkeypatch.context() as patch:
        patch.setattr("nacd.model.microbatch.free_memory", lambda device: 1)  # by then: as it began
        nacd.distill(stopped, progress=QUIET)
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")


@pytest.mark.slow
def test_killed_by_the_system_it_goes_on_with_the_same_bits(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    """SIGKILL while experts are recorded, while rows are learned, and while the table is made."""
    base = config(tiny_folder("llama"), rows, tmp_path / "whole")
    outer = replace(base.outer, objective="trajectory", expert_start=2, check_every=1)
    base = replace(base, outer=outer, compare=("seeds", "text"))
    nacd.distill(base, progress=QUIET)
    out = tmp_path / "killed"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(replace(base, out=out))))
    command = [sys.executable, "-m", "nacd", "distill", "--config", str(file)]
    killed = 0
    for begun in ("experts/0/step-00001*", "distill/metrics.jsonl", "ladder/*.json"):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not [*out.glob(begun)]:
                time.sleep(0.002)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    subprocess.run(command, check=True, capture_output=True)
    assert files(out) == files(tmp_path / "whole")
    lines = (out / "distill" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["outer_step"] for line in lines] == [0, 1, 2, 3]
    tables = [json.loads((run / "results.json").read_text())["table"] for run in (out, base.out)]
    for killed_row, whole_row in zip(*tables, strict=True):
        assert killed_row["report_nll"] == whole_row["report_nll"]


def test_another_configuration_is_refused_by_its_keys(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    base = replace(config(tiny_folder("gpt2"), rows, tmp_path / "run"), compare=("zero-shot",))
    nacd.distill(base, progress=QUIET)
    before = files(tmp_path / "run")
    other = replace(base, seed=3, recipe=replace(base.recipe, batch_size=3))
    with pytest.raises(UserError, match=r"recipe\.batch_size: 2 there, 3 now\n  seed: 0 there, 3"):
        nacd.distill(other, progress=QUIET)
    assert files(tmp_path / "run") == before
    settings = tmp_path / "run" / "run.yaml"
    older = yaml.safe_load(settings.read_text())
    del older["outer"]["objective_rows"]  # as before that key existed
    settings.write_text(yaml.safe_dump(older))
    nacd.distill(base, progress=QUIET)
    assert files(tmp_path / "run") == before
    smaller = replace(base, model=replace(base.model, micro_tokens=64))
    nacd.distill(smaller, progress=QUIET)
    assert files(tmp_path / "run") == before, "what lets a run go on changes no more than rounding"


def test_changed_data_is_refused(tiny_folder: Folder, rows: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(rows.read_text())
    base = replace(config(tiny_folder("gpt2"), mine, tmp_path / "run"), compare=("zero-shot",))
    nacd.distill(base, progress=QUIET)
    mine.write_text("".join(rows.read_text().splitlines(keepends=True)[:-4]))
    with pytest.raises(UserError, match="the data has changed"):
        nacd.distill(base, progress=QUIET)


def test_a_training_that_its_warm_up_keeps_at_0_is_refused(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    base = config(tiny_folder("gpt2"), rows, tmp_path / "run")
    still = replace(base, recipe=replace(base.recipe, batch_size=64, epochs=1))
    with pytest.raises(UserError, match=r"--batch-size 64: .* 1 optimiser step, .* --warmup 0.1"):
        nacd.distill(still, progress=QUIET)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0", "above 0"),
        ("0%", "above 0"),
        ("101%", "over 100 %"),
        ("1000", "1000 rows asked for"),
        ("many", "not a number"),
        ("2.5", "whole number"),
    ],
)
def test_a_wrong_budget(
    budget: str, message: str, tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    wrong = replace(config(tiny_folder("gpt2"), rows, tmp_path / "run"), budget=budget)
    with pytest.raises(UserError, match=message):
        nacd.distill(wrong, progress=QUIET)


@pytest.mark.slow
def test_the_text_that_is_best_on_development_rows_is_exported(
    tiny_folder: Folder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the objective says: looks are put in by hand, the second of them is the best."""
    losses = iter([3.0, 2.0, 2.5, 2.6])
    check, texts = Distiller.check, []

    def looked(self: Distiller, wanted: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
        found, ids = check(self, wanted)
        texts.append(ids)
        return found | {"development_text": next(losses)}, ids

    monkeypatch.setattr(Distiller, "check", looked)
    base = config(tiny_folder("llama"), rows, tmp_path / "run")
    outer = replace(base.outer, check_every=1, step_size=20.0)
    nacd.distill(replace(base, outer=outer, compare=()), progress=QUIET)
    learned = json.loads((tmp_path / "run" / "distill" / "learned.json").read_text())
    assert learned["exported_step"] == 1
    assert not torch.equal(texts[1], texts[0])
    assert not torch.equal(texts[1], texts[3])
    exported = read_examples(str(tmp_path / "run" / "dataset" / "train.jsonl"))
    model = load_model(base.model)
    template = make_template("auto", model.tokenizer, exported)
    ids = [i for row in exported for i in template.encode(row).ids]
    assert set(texts[1].tolist()) <= set(ids)
