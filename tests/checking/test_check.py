"""`nacd check` from a file to a verdict, rows and a page, on a tiny random model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

import nacd
from nacd.checking import plan, trainings
from nacd.checking.said import checked_lines, print_checked
from nacd.checking.verdict import judge
from nacd.cli import main
from nacd.commands import check as module
from nacd.comparison import rowset
from nacd.config import DataConfig
from nacd.config.check import CheckConfig
from nacd.config.recipe import Recipe
from nacd.costs.costs import Speed, Stage
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.statistics.verdict import Difference
from nacd.terminal.progress import Progress
from nacd.training import tuning

Folder = Callable[[str], Path]
ROWS = 240
LABELS = "soft_labels.parquet"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose answers a model of any size can learn to expect."""
    file = tmp_path_factory.mktemp("data") / "mine.jsonl"
    lines = [
        {"instruction": f"Name thing {i}", "output": f"the thing {i % 3}"} for i in range(ROWS)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def config(tiny_folder: Folder, data: Path) -> CheckConfig:
    return CheckConfig(
        budget="8",
        minutes=60.0,
        methods=("rds+", "best-of"),
        tune=False,
        model=ModelConfig(model=str(tiny_folder("llama")), lora_rank=2),
        data=DataConfig(data=str(data), target_rows=10, template="qa"),
        recipe=Recipe(batch_size=4, epochs=2, learning_rate=2e-2),
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer trainings than a check has time for."""
    monkeypatch.setattr(plan, "MANY", 4)
    monkeypatch.setattr(plan, "MORE", 3)
    monkeypatch.setattr(plan, "TRIES", 4)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = [*folder.glob("trainings/*/*/*.json"), *folder.glob("tuning/*.json")]
    return {
        str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes())
        for f in [*found, *folder.glob("choosing/*/chosen.json")]
    }


@pytest.mark.usefixtures("few")
def test_from_a_file_to_what_to_do(
    config: CheckConfig, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = (
        f"check --model {config.model.model} --data {data} --out {out} --budget 8 --lora-rank 2 "
        "--batch-size 4 --epochs 2 --learning-rate 2e-2 --target-rows 10 --template qa --no-tune "
        "--minutes 60 --methods rds+ best-of"
    ).split()
    assert main([*flags, "--json"]) == 0
    printed = capsys.readouterr()
    made = json.loads(printed.out)
    results = json.loads((out / "results.json").read_text())
    assert made["verdict"] == results["verdict"]
    assert made["kind"] == "all", "many rows of one kind are learned better than a few"
    assert made["rows"] == results["total_rows"] == results["sizes"]["training"]
    lines = printed.err.splitlines()
    assert max(map(len, lines)) <= 80 + len(str(tmp_path))
    plain = " ".join(printed.err.split())
    for part in (
        "min of 60 min (estimated from a measured step)",
        "all 158 rows",
        "8 rows by RDS+",
        made["verdict"],
    ):
        assert part in plain, part
    # every figure is that of its own trainings' files
    rows = {(row["set"], row["rows"]): row for row in results["table"]}
    assert [key[0] for key in rows].count("random") >= 3
    for (kind, size), row in rows.items():
        place = out / "trainings" / "0.02" / f"{kind}-{size}"
        mine = [json.loads(f.read_text()) for f in place.glob(f"{row['passes']:g}-*.json")]
        assert len(mine) == len(row["values"])
        assert all(len(one["test"]) == results["sizes"]["test"] for one in mine)
        summed = sum(sum(one["test"]) for one in mine) / len(mine)
        assert row["nll"] * sum_of_tokens(config, data) == pytest.approx(summed)
    # nothing but the first trainings is measured on validation rows
    judged = Counter(
        f.parent.name
        for f in out.glob("trainings/*/*/*.json")
        if json.loads(f.read_text())["validation"] is not None
    )
    assert judged["random-8"] == plan.TRIES
    assert "best-of-8" not in judged
    assert "rds+-8" not in judged
    # the rows that are recommended, and those of the budget
    loaded: Any = datasets.load_dataset(
        str(out / "dataset"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert len(loaded) == results["total_rows"]
    small = (out / "dataset-at-budget" / "train.jsonl").read_text().splitlines()
    assert len(small) == 8
    card = (out / "dataset-at-budget" / "README.md").read_text()
    assert made["verdict"] in card
    assert "| 8 rows by RDS+ |" in card
    trainer = (out / "dataset-at-budget" / "train_with" / "trl.yaml").read_text()
    assert "learning_rate: 0.02" in trainer
    assert "train_sampling_strategy" not in trainer, "shuffled"
    assert rows["labelled", 8]["trainings"] == 3
    assert "With soft labels of the model trained on all rows, 8 random rows" in made["detail"]
    assert not (out / "labels").exists(), "nothing is known to be gained"
    page = (out / "report.html").read_text()
    assert made["verdict"].partition(":")[0] in page
    assert "Soft labels" in page
    assert main(["show", str(out)]) == 0
    assert made["verdict"] in " ".join(capsys.readouterr().out.split())
    assert main(["show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == results["table"]
    assert main(["runs", str(tmp_path)]) == 0
    assert "checked: all" in capsys.readouterr().out
    # the same command again: nothing is trained anew
    before = files(out)
    assert main(flags) == 0
    assert files(out) == before
    assert json.loads((out / "results.json").read_text())["readings"] == results["readings"]


@pytest.mark.usefixtures("few")
def test_where_soft_labels_gain_they_are_left_with_their_teacher(
    config: CheckConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gained = Difference(-0.2, 0.1, (-0.3, -0.1))
    monkeypatch.setattr(module, "judge", lambda found: replace(judge(found), labels=gained))
    out = tmp_path / "run"
    found = nacd.check(replace(config, out=out, methods=()), progress=Progress(quiet=True))
    assert found.labels == out / "labels" / "soft_labels.parquet"
    print_checked(found, print)
    assert str(found.labels) in capsys.readouterr().out
    chosen = str(out / "dataset-at-budget" / "train.jsonl")
    common = ["--data", chosen, "--model", str(config.model.model)]
    student = ["--out", str(tmp_path / "student"), "--soft-labels", str(found.labels)]
    assert main(["train", *common, *student]) == 0
    again = ["--out", str(tmp_path / "again"), "--adapter", str(out / "labels" / "teacher")]
    assert main(["label", *common, *again]) == 0
    ours, theirs = (pq.read_table(f) for f in (found.labels, tmp_path / "again" / LABELS))
    assert ours["target_token_ids"] == theirs["target_token_ids"]
    for mine, other in zip(ours["logprobs"], theirs["logprobs"], strict=True):
        assert np.allclose(mine.as_py(), other.as_py(), atol=1e-5)
    # the same command, and nothing is gained any more
    monkeypatch.setattr(module, "judge", judge)
    assert quiet(replace(config, out=out, methods=())).labels is None
    assert not (out / "labels").exists()


def sum_of_tokens(config: CheckConfig, data: Path) -> int:
    from nacd.model.prepare import prepare

    rows = prepare(config.model, config.data).report.rows
    return sum(sum(row.response) for row in rows)


class Clock:
    """Time that passes while something is trained, and not otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: CheckConfig):
        self.now, self.trained, self.dies_at = 0.0, 0, 0
        watch = SimpleNamespace(perf_counter=lambda: self.now)
        for where in (module, trainings, rowset, tuning):
            monkeypatch.setattr(where, "time", watch)
        for where in (rowset, tuning):
            monkeypatch.setattr(where, "train_student", self.train)
        monkeypatch.setattr(module, "measure", lambda *_: Speed(1.0, tuning.FORWARD))
        monkeypatch.setattr(module, "choosing_stage", lambda *_: Stage("choosing", 0.0))

    def train(self, model: Any, recipe: Recipe, data: Any, seed: int, **_: Any) -> Any:
        self.trained += 1
        if self.trained == self.dies_at:
            raise KeyboardInterrupt
        self.now += recipe.epochs * sum(len(row) for row in data.rows)  # a second a token
        return 0.01 * recipe.learning_rate * model.fresh_theta(seed)


def quiet(config: CheckConfig) -> nacd.Checked:
    return nacd.check(config, progress=Progress(quiet=True))


def test_minutes_bound_it_and_more_of_them_go_on(
    config: CheckConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, config)
    short = replace(config, out=tmp_path / "run", minutes=40.0)
    found = quiet(short)
    first = files(short.out)
    assert clock.trained > 3
    assert clock.now <= 60 * short.minutes
    assert found.minutes == pytest.approx(clock.now / 60, rel=0.01)  # choosing takes real time
    assert found.advised is None or found.advised > short.minutes
    # the same again, from a new process's clock: there is no time left for anything
    times, clock.now = clock.trained, 0.0
    assert quiet(short).verdict == found.verdict
    assert clock.trained == times
    longer = quiet(replace(short, minutes=160.0))
    assert clock.trained > times
    assert clock.now + 60 * found.minutes <= 60 * 160.0
    assert first.items() <= files(short.out).items(), "no training is done twice"
    results = json.loads((short.out / "results.json").read_text())
    assert len(results["readings"]) == 2
    assert any("read 2 times" in name for name, _ in results["warnings"])
    assert longer.minutes > found.minutes


def test_an_interrupted_check_goes_on(
    config: CheckConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, config)
    whole = replace(config, out=tmp_path / "whole", minutes=100.0, tune=True)
    assert quiet(whole)
    times, clock.trained, clock.dies_at, clock.now = clock.trained, 0, 9, 0.0
    killed = replace(whole, out=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        quiet(killed)
    clock.now = 0.0
    assert quiet(killed)
    assert clock.trained == times + 1
    made = [
        {name: json.loads(content)["test"] for name, (_, content) in files(run.out).items()
         if "trainings" in name}
        for run in (whole, killed)
    ]  # fmt: skip
    assert made[0] == made[1]
    tuned = [json.loads((run.out / "tuning.json").read_text())["tried"] for run in (whole, killed)]
    assert tuned[0] == tuned[1]


def test_too_little_time_says_so(
    config: CheckConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, config)
    found = quiet(replace(config, out=tmp_path / "run", minutes=0.1))
    assert clock.trained == 0
    assert found.kind == "too few"
    assert found.verdict.startswith("Too few trainings to tell: 0 on random rows")
    assert re.search(r"give --minutes \d+ \(estimated\)\.$", found.verdict)
    assert found.advised is not None
    assert (found.folder / "report.html").is_file()
    enough = quiet(replace(config, out=tmp_path / "run", minutes=found.advised))
    assert "0 on random rows" not in enough.verdict


def test_a_tuned_recipe_is_the_one_that_is_used_and_exported(
    config: CheckConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, config)
    found = quiet(replace(config, out=tmp_path / "run", minutes=100.0, tune=True))
    record = json.loads((tmp_path / "run" / "tuning.json").read_text())
    assert found.recipe.learning_rate == record["learning_rate"]
    assert found.recipe.epochs == record["epochs"]
    assert found.recipe.shuffle
    place = tmp_path / "run" / "trainings" / f"{found.recipe.learning_rate:g}"
    assert [*place.glob(f"random-8/{found.recipe.epochs:g}-0.json")]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tuning"]["table"]
    assert results["costs"][0]["name"] == "tuning learning rate and epochs"
    card = (tmp_path / "run" / "dataset" / "README.md").read_text()
    assert found.recipe.learning_rate == pytest.approx(
        float(re.findall(r"recipe \| learning rate (\S+),", card)[0])
    )


def test_draws_of_one_number_hold_each_other(config: CheckConfig) -> None:
    from nacd.model.prepare import prepare
    from nacd.store.run import RunFolder

    prepared = prepare(config.model, config.data)
    total = len(prepared.train)
    state = plan.State(plan.Sizes(8, total, 2, 32), 2.0)
    own = trainings.Trainings(
        config, prepared, RunFolder(Path("nowhere")), state, Progress(quiet=True)
    )
    sets = [own.rows("random", n, 3) for n in (2, 8, 32, total)]
    for small, large in pairwise(sets):
        assert large[: len(small)] == small
    assert sorted(sets[-1]) == [*range(total)]
    assert own.rows("random", 8, 4) != sets[1]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"budget": "100%"}, "--budget 100%: nothing is left out"),
        ({"budget": "1000"}, "--budget 1000: 1000 rows asked for"),
        ({"budget": "158"}, "--budget 158: 158 of 158 training rows; nothing is left out"),
        ({"minutes": 0.0}, "--minutes 0: must be above 0"),
        ({"alike": 1.5}, "--alike 1.5: a share"),
        ({"methods": ("random",)}, "--methods random: random rows are what the others"),
        ({"methods": ("best",)}, "--methods best: unknown"),
        ({"methods": ("rds+", "rds+")}, "--methods: rds+ is named twice"),
        ({"recipe": Recipe(shuffle=False)}, "--no-shuffle: nacd check trains in a new order"),
        ({"recipe": Recipe(steps=4)}, "--steps 4: sets of several sizes"),
        ({"data": DataConfig()}, "--data is missing"),
    ],
)
def test_a_wrong_setting_is_named(
    changes: dict[str, Any], part: str, config: CheckConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(part)):
        quiet(replace(config, out=tmp_path / "run", **changes))


def test_a_choice_by_target_rows_needs_some(config: CheckConfig, tmp_path: Path) -> None:
    none = replace(config, out=tmp_path / "run", data=replace(config.data, target_rows=0))
    with pytest.raises(UserError, match=r"--methods rds\+: needs target rows"):
        quiet(none)


def test_a_folder_of_other_settings_is_refused(
    config: CheckConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, config)
    quiet(replace(config, out=tmp_path / "run", minutes=0.1))
    with pytest.raises(UserError, match=r"budget: '8' there, '9' now"):
        quiet(replace(config, out=tmp_path / "run", budget="9"))


def test_a_training_that_diverges_has_no_figure(
    config: CheckConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, config)
    whole = clock.train

    def train(model: Any, recipe: Recipe, data: Any, seed: int, **options: Any) -> Any:
        theta = whole(model, recipe, data, seed, **options)
        return theta * float("nan") if len(data.rows) == 8 and seed == 1 else theta

    monkeypatch.setattr(rowset, "train_student", train)
    found = quiet(replace(config, out=tmp_path / "run", minutes=100.0))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (row,) = [r for r in found.table if r["set"] == "random" and r["rows"] == 8]
    assert np.isfinite(row["nll"])
    assert row["trainings"] < len([*tmp_path.glob("run/trainings/*/random-8/*.json")])
    assert any("Trainings that diverged" in name for name, _ in results["warnings"])
    assert max(map(len, checked_lines(results))) <= 80
