from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nacd.cli import main
from nacd.config import DataConfig, DistillConfig
from nacd.config.budget import parse_budget
from nacd.config.compare import CompareConfig
from nacd.errors import UserError
from nacd.store.tracking import TRACKERS, check_tracker, tracking

Folder = Callable[[str], Path]


class Recorder:
    """A package of the name `trackio` that keeps what accelerate's tracker hands it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.started: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        package: Any = types.ModuleType("trackio")
        package.__spec__ = importlib.util.spec_from_loader("trackio", loader=None)
        package.init = self._init
        package.config = types.SimpleNamespace(
            update=lambda values, **_: self.settings.update(values)
        )
        monkeypatch.setitem(sys.modules, "trackio", package)
        for name in ("WANDB_MODE", "TRACKIO_DIR"):
            monkeypatch.setenv(name, "x")  # so that what is set is taken back afterwards
            monkeypatch.delenv(name)

    def _init(self, **options: Any) -> Any:
        self.started.append(options)
        return types.SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, values: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, values))

    def _finish(self) -> None:
        self.finished += 1


def test_no_tracker_is_silence(tmp_path: Path) -> None:
    with tracking("", tmp_path, {}) as log:
        log({"loss": 1.0}, 0)
    assert list(tmp_path.iterdir()) == []


def test_rows_reach_accelerates_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Recorder(monkeypatch)
    with tracking("trackio", tmp_path / "mine", {"a": {"b": 1, "c": None}, "d": ["x"]}) as log:
        log({"loss": 1.5, "note": "text", "gap": float("nan"), "rows": 2}, 3)
    assert found.started[0]["project"] == "nacd"
    assert found.started[0]["name"] == "mine"
    assert "space_id" not in found.started[0]
    assert found.settings == {"a.b": 1, "a.c": "None", "d": "['x']"}
    assert found.rows == [(3, {"loss": 1.5, "rows": 2.0})]
    assert found.finished == 1
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "mine" / "tracking")


def test_the_tracker_is_closed_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Recorder(monkeypatch)
    with pytest.raises(RuntimeError), tracking("trackio", tmp_path, {}):
        raise RuntimeError
    assert found.finished == 1


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    with tracking("tensorboard", tmp_path, {"recipe": {"batch_size": 2}, "data": None}) as log:
        log({"objective": 1.5, "note": "text"}, 1)
        log({"objective": 1.25}, 2)
    found = EventAccumulator(str(tmp_path / "tracking" / "nacd")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("objective")] == [(1, 1.5), (2, 1.25)]


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("")
    with pytest.raises(UserError, match="--track mlflow: unknown"):
        check_tracker("mlflow")
    for tracker in TRACKERS:
        monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=r'pip install "nacd\[track\]"'):
        check_tracker("tensorboard")
    with pytest.raises(UserError, match="pip install wandb"):
        check_tracker("wandb")
    with pytest.raises(UserError, match="pip install trackio"):
        DistillConfig(track="trackio", data=DataConfig(data="mine.jsonl")).check()


def test_distill_tracks_every_outer_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Folder
) -> None:
    found = Recorder(monkeypatch)
    data = tmp_path / "mine.jsonl"
    data.write_text(
        "".join(
            json.dumps({"instruction": f"Name thing number {i}", "output": f"the name {i}"}) + "\n"
            for i in range(40)
        )
    )
    out = tmp_path / "run"
    flags = (
        f"distill --model {tiny_folder('llama')} --data {data} --out {out} --budget 3 "
        "--lora-rank 2 --batch-size 2 --outer-steps 2 --check-every 2 --trainings 1 "
        "--compare seeds --target-rows 4 --engine exact --template alpaca --license mit "
        "--language en"
    ).split()
    assert main([*flags, "--track", "trackio"]) == 0
    lines = (out / "distill" / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [step for step, _ in found.rows] == [row["outer_step"] for row in kept] == [0, 1, 2]
    assert found.rows[2][1]["objective"] == kept[2]["objective"]
    assert found.settings["recipe.batch_size"] == 2
    card = (out / "dataset" / "README.md").read_text()
    assert "license: mit" in card
    assert "| train data | " in card
    assert (out / "dataset" / "train_with" / "axolotl.yaml").is_file()
    # a tracker, a licence and a language are no other run
    assert main([*flags[:-4], "--language", "de"]) == 0
    assert len(found.started) == 1
    assert "- de" in (out / "dataset" / "README.md").read_text()


def test_compare_tracks_its_distillations() -> None:
    config = CompareConfig(track="trackio", data=DataConfig(data="mine.jsonl"))
    assert config.distillation(parse_budget("5%"), 0).track == "trackio"
    with pytest.raises(UserError, match="--track mlflow: unknown"):
        replace(config, track="mlflow").check()


def test_train_tracks_every_step(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Recorder(monkeypatch)
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p {i}", "completion": f"c {i}"} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        f"train --model {tiny_folder('llama')} --data {data} --out {tmp_path / 'out'} "
        "--lora-rank 2 --batch-size 2 --epochs 2 --track trackio"
    )
    assert main(flags.split()) == 0
    losses = json.loads((tmp_path / "out" / "train.json").read_text())["losses"]
    assert len(losses) == 4
    assert [values["loss"] for _, values in found.rows] == losses
    assert [step for step, _ in found.rows] == [1, 2, 3, 4]
    assert found.finished == 1
