"""Nothing that is done is lost: full disks, read-only folders, two processes, damaged files."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nacd
from nacd.cli import main
from nacd.commands.compare import compare
from nacd.config import DataConfig, DistillConfig, ExpertConfig, OuterLoopConfig, ReadConfig
from nacd.config.commands import SelectConfig, TrainConfig
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.data.rows import Rows
from nacd.distillation.outer import OuterLoop
from nacd.errors import UserError
from nacd.experts import record_expert
from nacd.model.lora import LoraModel, ModelConfig
from nacd.model.prepare import prepare
from nacd.store.alone import lock
from nacd.store.files import read_tensors, write_tensors
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import train_student

Folder = Callable[[str], Path]
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [{"instruction": f"Which colour has {i}?", "output": f"red {i}"} for i in range(30)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def base(tiny_folder: Folder, rows: Path) -> DistillConfig:
    """A run with every kind of artefact but experts: three outer steps with two students."""
    return DistillConfig(
        budget="4",
        trainings=1,
        compare=("seeds", "text"),
        model=ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=2),
        data=DataConfig(data=str(rows), target_rows=4, template="alpaca"),
        recipe=Recipe(batch_size=2, epochs=2, learning_rate=5e-3),
        expert=ExpertConfig(expert_batch=16, snapshot_every=1),
        outer=OuterLoopConfig(
            outer_steps=3, check_every=2, check_trainings=1, engine="exact", pool=2, renew=1
        ),
    )


def result(folder: Path) -> tuple[Any, ...]:
    """What a run promises to repeat: its rows, its vectors, its table, its metrics but the time."""
    lines = (folder / "distill" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) | {"seconds": 0} for line in lines]
    table = json.loads((folder / "results.json").read_text())["table"]
    rows = (folder / "dataset" / "train.jsonl").read_bytes()
    vectors = (folder / "soft_prompts.safetensors").read_bytes()
    return rows, vectors, [row["report_nll"] for row in table], metrics


@pytest.fixture(scope="module")
def whole(base: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    nacd.distill(replace(base, out=out), progress=QUIET)
    return out


# --- a full disk, a folder that cannot be written ----------------------------------------------

STAGES = (
    "run.yaml",
    "provenance.json",
    "stages.json",
    "seeds.json",
    "doctor.json",
    "agreement.json",
    "metrics.jsonl",
    "state.safetensors",
    "0.safetensors",
    "test.jsonl",
    "train.parquet",
    "soft_prompts.safetensors",
    "rows.jsonl",
    "text-0.json",
    "results.json",
    "report.html",
)


def test_a_disk_that_is_full_at_any_stage_loses_nothing(
    base: DistillConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first write of each of these files in turn; the run goes on where it was."""
    run = replace(base, out=tmp_path / "run")
    move = Path.replace
    for name in STAGES:

        def full(self: Path, target: Path, name: str = name) -> Path:
            if Path(target).name == name:
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
            return move(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            with pytest.raises(UserError, match=rf"{name}: the disk is full.*same command again"):
                nacd.distill(run, progress=QUIET)
        assert not [*run.out.rglob("*.partial-*")]
    nacd.distill(run, progress=QUIET)
    assert result(run.out) == result(whole)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_named(
    number: int,
    base: DistillConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(self))

    out = tmp_path / "run"
    args = f"select --method random --data {base.data.data} --model {base.model.model} --out {out}"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        assert main(args.split()) == 1
    said = capsys.readouterr().err
    assert f"--out {out}: cannot be written ({os.strerror(number)}); make it writable" in said
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        with pytest.raises(UserError, match=r"run\.yaml: cannot be written .* give another one"):
            nacd.distill(replace(base, out=out), progress=QUIET)


# --- two processes ------------------------------------------------------------------------------


def test_a_second_process_is_told_of_the_first(base: DistillConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = (
        "import sys, pathlib; from nacd.store.alone import lock\n"
        "held = lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with first:
        assert first.stdout is not None
        first.stdout.readline()
        run = SelectConfig(out=out, method="random", budget="4", model=base.model, data=base.data)
        with pytest.raises(UserError, match=rf"{out}: process {first.pid} on .* is at work in"):
            nacd.select(run, progress=QUIET)
        training = TrainConfig(out=out, model=base.model, data=ReadConfig(base.data.data))
        with pytest.raises(UserError, match="is at work in"):
            nacd.fine_tune(training)
        first.kill()
    assert nacd.select(run, progress=QUIET).rows, "a killed process holds nothing"
    again = lock(out)
    assert lock(out) is again, "a process is not in its own way"


# --- damaged files ------------------------------------------------------------------------------


def harmed(content: bytes, harm: str) -> bytes:
    if harm == "cut":
        return content[: len(content) * 2 // 3]
    place = len(content) * 3 // 4
    digit = next(i for i in range(place, len(content)) if chr(content[i]).isdigit())
    flipped = bytes([content[digit] ^ 1])  # of JSON: another digit, and JSON still
    return content[:digit] + flipped + content[digit + 1 :]


@pytest.mark.parametrize(
    "name",
    [
        "provenance.json",
        "seeds.json",
        "doctor.json",
        "distill/state.safetensors",
        "distill/metrics.jsonl",
        "ladder/text-0.json",
    ],
)
def test_a_damaged_file_of_a_distillation_is_named(
    name: str, base: DistillConfig, whole: Path, tmp_path: Path
) -> None:
    run = replace(base, out=tmp_path / "run")
    shutil.copytree(whole, run.out)
    file = run.out / name
    content = file.read_bytes()
    for harm in ("cut", "flipped"):
        if (file.suffix, harm) == (".jsonl", "flipped"):
            continue  # a figure that is shown alone
        file.write_bytes(harmed(content, harm))
        with pytest.raises(UserError, match=rf"{name}: (damaged|not JSON)"):
            nacd.distill(run, progress=QUIET)
    file.write_bytes(content)
    nacd.distill(run, progress=QUIET)
    assert result(run.out) == result(whole)


def test_files_in_each_others_place_are_named(
    base: DistillConfig, whole: Path, tmp_path: Path
) -> None:
    run = replace(base, out=tmp_path / "run")
    shutil.copytree(whole, run.out)
    seeds, text = (run.out / "ladder" / f"{name}-0.json" for name in ("seeds", "text"))
    kept = seeds.read_bytes()
    seeds.write_bytes(text.read_bytes())
    with pytest.raises(UserError, match=r"seeds-0\.json: damaged, or moved here from another"):
        nacd.distill(run, progress=QUIET)
    seeds.write_bytes(kept)
    state = run.out / "distill" / "state.safetensors"
    other_rows, _ = read_tensors(state)
    write_tensors(state, other_rows | {"start": other_rows["start"] + 1})
    with pytest.raises(UserError, match=r"state\.safetensors: of other starting rows"):
        nacd.distill(run, progress=QUIET)


def test_students_of_the_pool(
    base: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are removed when learning ends; here it ends early."""
    run, step = replace(base, out=tmp_path / "run"), OuterLoop.step

    def stopped(self: OuterLoop, segments: Any) -> dict[str, float]:
        if self.done == 2:
            raise KeyboardInterrupt
        return step(self, segments)

    with monkeypatch.context() as patch:
        patch.setattr(OuterLoop, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            nacd.distill(run, progress=QUIET)
    pool = run.out / "distill" / "pool"
    student = pool / "0.safetensors"
    whole = student.read_bytes()
    tensors = bytearray(whole)
    tensors[-3] ^= 1
    for harm, said in (
        (whole[:-5], "damaged"),
        (tensors, "damaged"),
        ((pool / "1.safetensors").read_bytes(), "it was written as 1.safetensors"),
    ):
        student.write_bytes(harm)
        with pytest.raises(UserError, match=rf"0\.safetensors: .*{said}"):
            nacd.distill(run, progress=QUIET)
    student.write_bytes(whole)
    nacd.distill(run, progress=QUIET)
    assert not pool.exists()


def test_cells_and_choices_of_a_comparison(base: DistillConfig, tmp_path: Path) -> None:
    grid = CompareConfig(
        out=tmp_path / "grid",
        methods=("random", "longest"),
        budgets=("4",),
        trainings=2,
        full_trainings=1,
        model=base.model,
        data=base.data,
        recipe=base.recipe,
    )
    compare(grid, progress=QUIET)
    zero, one = sorted(grid.out.glob("cells/*/4/longest/*/result.json"))
    kept = zero.read_bytes()
    for harm in (harmed(kept, "cut"), harmed(kept, "flipped"), one.read_bytes()):
        zero.write_bytes(harm)
        with pytest.raises(UserError, match=r"longest/0/result\.json: (damaged|not JSON)"):
            compare(grid, progress=QUIET)
    zero.write_bytes(kept)
    table = grid.out / "results.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"results\.parquet: damaged .*the trainings .* are kept"):
        compare(grid, progress=QUIET)
    table.unlink()
    compare(grid, progress=QUIET)


def test_rounds_of_a_search_are_sealed_with_their_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(2):
        folder.once(f"rounds/000{number}", lambda number=number: {"worth": [number, 0.5, None]})
    first, second = sorted(tmp_path.glob("rounds/*.json"))
    assert folder.kept("rounds/0001") == {"worth": [1, 0.5, None]}
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"0000\.json: damaged, or moved here from another place"):
        folder.once("rounds/0000", dict)
    second.write_text('{"worth": [1, 0.5, null]}')
    assert folder.once("rounds/0001", dict)["worth"][0] == 1, "an older version's has no seal"
    for text in ("[]", "1"):
        second.write_text(text)
        with pytest.raises(UserError, match=r"0001\.json: damaged"):
            folder.kept("rounds/0001")


@pytest.mark.parametrize("place", [30, 200, -3])
def test_a_bit_that_flips_anywhere_is_found(place: int, tmp_path: Path) -> None:
    """In the header's own text, in what was said of the tensors, in the tensors."""
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"x": torch.arange(9.0)}, {"step": "12", "of": "z" * 200})
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: damaged .*delete it"):
        read_tensors(file)


# --- numbers that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("whole_gradient", [True, False])
def test_a_gradient_that_is_not_finite_is_found_within_a_step(
    whole_gradient: bool, base: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, or one number of it; AdamW, in a training and in an expert's."""
    prepared = prepare(base.model, base.data)
    step, calls = LoraModel.value_and_grad, []

    def planted(self: LoraModel, *args: Any, **more: Any) -> Any:
        loss, gradient, rest = step(self, *args, **more)
        calls.append(float(loss))
        if len(calls) == 2:
            gradient[: len(gradient) if whole_gradient else 1] = math.nan
        return loss, gradient, rest

    monkeypatch.setattr(LoraModel, "value_and_grad", planted)
    rows, model = prepared.train.rows, prepared.model
    data = Rows.of(rows, model.tokenizer.pad_token_id)
    theta = train_student(model, replace(base.recipe, steps=9), data, 0)
    assert len(calls) == 3
    assert math.isfinite(calls[1])
    assert torch.isnan(theta).all()
    calls.clear()
    with pytest.raises(UserError, match=r"expert's loss is .* at step 2 of 9: training diverged"):
        record_expert(
            model,
            rows,
            [example.digest for example in prepared.train.examples],
            replace(base.recipe, steps=9),
            seed=0,
            every=1,
            folder=tmp_path,
            pad_id=model.tokenizer.pad_token_id,
        )


def test_vectors_that_are_not_finite_end_the_learning_at_once(
    base: DistillConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = replace(base, out=tmp_path / "run", compare=()), OuterLoop.step

    def planted(self: OuterLoop, segments: Any) -> dict[str, float]:
        if self.done == 1:
            self.projection.parameters[0] = math.nan
        return step(self, segments)

    monkeypatch.setattr(OuterLoop, "step", planted)
    nacd.distill(run, progress=QUIET)
    said = json.loads((run.out / "distill" / "learned.json").read_text())["stopped"]
    assert said.startswith("what is learned holds numbers that are not finite at outer step 2;")
    shutil.copytree(whole, tmp_path / "other")
    state = tmp_path / "other" / "distill" / "state.safetensors"
    tensors, _ = read_tensors(state)
    write_tensors(state, tensors | {"adam_m": torch.full_like(tensors["adam_m"], math.nan)})
    with pytest.raises(UserError, match=r"state\.safetensors: adam_m holds numbers that are not"):
        nacd.distill(replace(base, out=tmp_path / "other"), progress=QUIET)


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of the driver is forked")
def test_killed_at_five_moments_a_run_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`experiments/faults.py` kills anywhere, at every rename too; here once at five renames."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import faults  # pyright: ignore[reportMissingImports]

    run, log = faults.prepared(tmp_path)["learn"], tmp_path / "log"
    faults.process(run, tmp_path / "alone", tmp_path / "log-alone")
    for number in (2, 9, 11, 14, 30):
        assert not faults.process(run, tmp_path / "run", log, at=(number, number % 2 == 0))
    assert faults.process(run, tmp_path / "run", log)
    assert faults.check(tmp_path / "run", log, faults.made(tmp_path / "alone")) == []
