"""Forecasts: work in tokens by hand, speed by a step, what a terminal sees and is asked."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nacd.config import DataConfig, DistillConfig, OuterLoopConfig, SelectionConfig
from nacd.config.recipe import Recipe
from nacd.costs import forecasts
from nacd.costs.costs import (
    Forecast,
    Speed,
    Stage,
    Work,
    choosing_stage,
    measure,
    tokens_of,
)
from nacd.costs.forecasts import announce, distillation
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import Prepared, prepare
from nacd.terminal.progress import Progress

RECIPE = Recipe(batch_size=3, epochs=2.0, shuffle=False)
JUDGED = SelectionConfig(judge="target", tries=5, weight_passes=3, warmup_epochs=2)
SPEED = Speed(2.0, 0.5, 1000, 700)


@pytest.fixture(scope="module")
def prepared(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    file = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    rows = [{"instruction": f"Name thing {i}", "output": "so " * (i % 4 + 1)} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(data=str(file), target_rows=4)
    return prepare(ModelConfig(model=str(tiny_folder("llama"))), data)


def test_work_is_counted_in_tokens(prepared: Prepared) -> None:
    work = Work(prepared, RECIPE, 4, forward=0.5)
    mean = tokens_of(prepared.train.rows) / len(prepared.train)
    targets = tokens_of(prepared.target.rows)
    assert work.one == pytest.approx(2 * 4 * mean), "the last batch of an epoch is a short one"
    assert work.choosing("random", JUDGED) == 0
    assert work.choosing("best-of", JUDGED) == pytest.approx(5 * (work.one + 0.5 * targets))
    groups = math.ceil(len(prepared.train) / 4)
    assert work.choosing("trajectory", JUDGED) > 3 * groups * work.one
    assert work.choosing("rds+", JUDGED) == pytest.approx(0.5 * (work.tokens + targets))
    twice = replace(JUDGED, warmup_epochs=4)
    assert work.choosing("less", twice) == pytest.approx(2 * work.choosing("less", JUDGED))
    stage = choosing_stage(work, SPEED, "rds+", JUDGED)
    assert (stage.seconds, stage.memory) == (2.0 * work.choosing("rds+", JUDGED), 700)


def test_a_distillation_is_told_stage_by_stage_and_less_what_is_done(
    prepared: Prepared, tmp_path: Path
) -> None:
    outer = OuterLoopConfig(objective="train-loss", outer_steps=3)
    config = DistillConfig(budget="4", recipe=RECIPE, outer=outer, trainings=2)
    whole = distillation(config, prepared, SPEED)
    names = [stage.name for stage in whole.stages]
    assert names == [
        "checking the meta-gradient",
        "learning, 3 outer steps",
        "its checks on validation rows",
        "table, 18 trainings",
    ]
    assert whole.stages[1].memory is not None
    assert whole.stages[1].memory > 1000, "the sweep keeps gradients"
    assert max(map(len, whole.describe().splitlines())) <= 80
    assert "in all" in whole.describe()
    metrics = tmp_path / "distill" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text("{}\n" * 4)
    (tmp_path / "doctor.json").write_text("{}")
    left = distillation(config, prepared, SPEED, tmp_path)
    assert [stage.name for stage in left.stages] == ["table, 18 trainings"]
    slow = distillation(config, prepared, SPEED, outer=(100.0, 5))
    assert slow.stages[1] == replace(whole.stages[1], seconds=300.0, memory=5)


def test_a_step_is_measured(prepared: Prepared) -> None:
    speed = measure(prepared.model, prepared.train.rows, RECIPE)
    assert 0 < speed.step < 1
    assert 0 < speed.forward < 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "asks", "answer", "asked", "begins"),
    [
        (4000.0, True, "y\n", True, True),
        (4000.0, True, "\n", True, False),
        (4000.0, False, "", False, True),
        (3000.0, True, "", False, True),
    ],
)
def test_a_terminal_is_asked_above_an_hour(
    seconds: float,
    asks: bool,
    answer: str,
    asked: bool,
    begins: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress, out = Progress(asks=asks), io.StringIO()
    progress.console = Console(file=out, width=80, force_terminal=True, highlight=False)
    found = Forecast((Stage("learning", seconds),))
    if begins:
        announce(found, progress)
        assert progress.so_far().endswith(f"of about {forecasts.duration(seconds)}")
    else:
        with pytest.raises(UserError, match="--yes"):
            announce(found, progress)
    assert ("Begin?" in out.getvalue()) == asked


@pytest.mark.parametrize("piped", ["stdin", "stderr"])
def test_a_pipe_is_never_asked(piped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO() if name == piped else Terminal())
    progress = Progress(asks=True)
    announce(Forecast((Stage("learning", 9e4),)), progress)
    assert progress.so_far()
