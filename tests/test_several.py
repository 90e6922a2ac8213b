"""One command in one process and in two: the same rows and figures, byte for byte."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nacd
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.model.lora import ModelConfig
from nacd.store import processes
from nacd.terminal.progress import Progress
from together import together

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short rows."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [{"prompt": f"Name number {i}", "completion": str(i % 7)} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def config(model: Path, data: Path, out: Path) -> DistillConfig:
    return DistillConfig(
        out=out,
        budget="2",
        trainings=2,
        compare=("seeds", "text"),
        model=ModelConfig(model=str(model), lora_rank=2),
        data=DataConfig(data=str(data), target_rows=4, template="alpaca"),
        recipe=Recipe(batch_size=2, epochs=2, learning_rate=5e-3),
        outer=OuterLoopConfig(
            outer_steps=2, segments=2, engine="first-order", step_size=1.0, agreement=0
        ),
    )


def without_times(text: str) -> str:
    return re.sub(r'"(\w*seconds|repaid_after)": [^,\n}]+', "", text)


def made(out: Path) -> dict[str, str]:
    """What a run has made, by file, without the times that it took."""
    names = ("dataset/train.jsonl", "distill/metrics.jsonl", "results.json", "tokens.json")
    files = [out / name for name in names] + sorted(out.glob("ladder/*.json"))
    found = {str(f.relative_to(out)): f.read_text() for f in files if f.is_file()}
    # the seal beside a kept result is of its times too
    return {name: re.sub(r'"seal": "\w+"', "", without_times(text)) for name, text in found.items()}


def test_a_distillation_is_the_same_by_one_process_and_by_two(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    model = tiny_folder("llama")

    def distilled() -> Any:
        quiet = Progress(quiet=True)
        done = nacd.distill(config(model, rows, tmp_path / "two"), progress=quiet)
        return done.verdict, processes.count()

    alone = nacd.distill(config(model, rows, tmp_path / "one"), progress=Progress(quiet=True))
    assert together(distilled) == [(alone.verdict, 2)] * 2
    one, two = made(tmp_path / "one"), made(tmp_path / "two")
    assert {"dataset/train.jsonl", "distill/metrics.jsonl", "results.json"} < one.keys()
    assert one == two
    # and one process takes up what two have left
    again = nacd.distill(config(model, rows, tmp_path / "two"), progress=Progress(quiet=True))
    assert again.verdict == alone.verdict


@pytest.mark.slow
def test_a_distillation_on_shares_of_a_model_is_the_same(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    model = tiny_folder("llama")
    short = replace(config(model, rows, tmp_path / "one"), compare=("text",), trainings=1)
    short = replace(short, outer=replace(short.outer, outer_steps=1))
    shared = replace(short, out=tmp_path / "two", model=replace(short.model, shard=True))
    alone = nacd.distill(short, progress=Progress(quiet=True))
    found = together(lambda: nacd.distill(shared, progress=Progress(quiet=True)).verdict)
    assert found == [alone.verdict] * 2
    train = "dataset/train.jsonl"
    assert (tmp_path / "one" / train).read_bytes() == (tmp_path / "two" / train).read_bytes()


LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node 2",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_starts_it(
    launcher: str, tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    def run(before: str, out: str) -> tuple[str, str, bytes]:
        flags = (
            f"nacd select --method less --model {tiny_folder('llama')} --data {rows} --budget 4 "
            f"--target-rows 4 --template alpaca --lora-rank 2 --learning-rate 5e-3 --json "
            f"--device cpu --out {tmp_path / out}"
        )
        done = subprocess.run(
            [sys.executable, *f"-m {before} -m {flags}".replace("-m  -m", "-m").split()],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rows_of = (tmp_path / out / "dataset" / "train.jsonl").read_bytes()
        return done.stdout, done.stderr, rows_of

    alone, several = run("", "one"), run(LAUNCHERS[launcher], "two")
    assert json.loads(several[0])["rows"] == json.loads(alone[0])["rows"]
    assert several[1].count("held out") == 1  # one process speaks
    assert several[2] == alone[2]


@pytest.mark.slow
def test_a_launch_of_what_runs_in_one_process_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nacd", "runs", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2"},
        check=False,
    )
    assert done.returncode == 1
    assert "nacd runs: it runs in one process" in done.stderr
