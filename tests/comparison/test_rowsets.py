"""What each row of the comparison trains on, of two distillations that are put in by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_grid import grid

from nacd.commands import distill as distilling
from nacd.comparison import distilled as module
from nacd.comparison.grid import Grid
from nacd.comparison.rowset import RowSet, Training
from nacd.comparison.rowsets import rowsets
from nacd.config import DistillConfig, ExpertConfig, OuterLoopConfig
from nacd.config.budget import parse_budget
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Example, Message
from nacd.model.prepare import Part, Prepared, prepare
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture
def config(tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path) -> CompareConfig:
    return grid(tiny_folder("llama"), rows, tmp_path / "grid")


@pytest.fixture
def source(config: CompareConfig) -> Prepared:
    return prepare(config.model, config.data)


def example(prompt: str, response: str) -> Example:
    return Example((Message("user", prompt), Message("assistant", response)), prompt)


def outcome(source: Prepared, folder: Path, number: int, chosen_by: str = "bm25") -> Any:
    """The distillation of this number: each has its own seeds, text, rate, time."""
    folder.mkdir()
    (folder / "seeds.json").write_text(json.dumps({"method": chosen_by, "flops": 7.0}))
    seeds = [example(f"seed {number} {i}", f"reply {i}") for i in range(2)]
    rows = tuple(source.template.encode(seed, turns="last") for seed in seeds)
    text = [SimpleNamespace(example=example(f"text {number} {i}", f"reply {i}")) for i in range(2)]
    stages = [
        ("choosing starting rows", 2.0),
        ("learning", 100.0 * (1 + number)),
        ("tuning", 5000.0),
    ]
    return SimpleNamespace(
        folder=SimpleNamespace(path=folder),
        starts=SimpleNamespace(examples=tuple(seeds), rows=rows, pseudo=f"pseudo {number}"),
        text=text,
        changed=0.1 * (1 + number),
        learned=SimpleNamespace(
            learning_rate=1e-3 * (1 + number),
            soft_learning_rate=2e-3 * (1 + number),
            soft=torch.full((2, 2), float(number)),
            soft_step=1,
            metrics=[],
        ),
        config=DistillConfig(),
        clock=SimpleNamespace(stages=[{"name": n, "seconds": s} for n, s in stages]),
    )


def read(source: Prepared, training: Training) -> list[str]:
    assert training.data is not None
    return [source.model.tokenizer.decode(row.ids) for row in training.data.rows]


def rowset(
    method: str, config: CompareConfig, source: Prepared, outcomes: list[Any], monkeypatch: Any
) -> RowSet:
    monkeypatch.setattr(module, "_learning_flops", lambda of: 10 * of.learned.learning_rate / 1e-3)
    return module.of_distillation(config, method, outcomes, source)


@pytest.mark.parametrize("method", ["seeds", "seeds-shuffled", "text", "text-shuffled"])
def test_trainings_take_the_distillations_in_turn(
    method: str,
    config: CompareConfig,
    source: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = [outcome(source, tmp_path / str(n), n) for n in range(2)]
    found = rowset(method, config, source, outcomes, monkeypatch)
    learned = method.startswith("text")
    word = "text" if learned else "seed"
    other = replace(source, report=source.report)  # another target
    for seed in range(4):
        own = found.training(source, seed)
        texts = read(source, own)
        assert [f"{word} {seed % 2} {i}" in text for i, text in enumerate(texts)] == [True] * 2
        assert own.in_order == (not method.endswith("-shuffled"))
        assert own.learning_rate == (1e-3 * (1 + seed % 2) if learned else None)
        assert own.tokens_changed == (0.1 * (1 + seed % 2) if learned else 0.0)
        assert own.boundaries_kept == (1.0 if learned else None)
        assert found.training(other, seed).learning_rate is None, "learned for the source alone"
    assert (found.draws, found.trainings, found.source_only) == (2, config.trainings, False)
    # of both distillations the mean time; the time to tune is everybody's
    assert found.choosing_seconds == (2.0 + 150.0 if learned else 2.0)
    assert found.choosing_flops == (7.0 + 15.0 if learned else 7.0), "and operations"


def test_soft_prompts_are_of_the_same_distillation(
    config: CompareConfig, source: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [outcome(source, tmp_path / str(n), n) for n in range(2)]
    found = rowset("soft", config, source, outcomes, monkeypatch)
    for seed in range(3):
        own: Any = found.training(source, seed)
        assert own.data == f"pseudo {seed % 2}"
        assert float(own.vectors[0, 0]) == seed % 2
        assert own.learning_rate == 2e-3 * (1 + seed % 2), "the soft prompts' own"
        assert own.in_order
    assert found.source_only


def test_random_seed_rows_take_no_time(
    config: CompareConfig, source: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [outcome(source, tmp_path / "run", 0, "random")]
    assert rowset("seeds", config, source, outcomes, monkeypatch).choosing_seconds == 0.0
    assert rowset("text", config, source, outcomes, monkeypatch).choosing_seconds == 100.0


@pytest.mark.parametrize("objective", ["target-loss", "train-loss", "trajectory"])
def test_the_operations_of_learning(
    objective: Any, source: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by hand, in passes forward and back over a token."""
    monkeypatch.setattr(module, "forward_flops", lambda _, tokens: tokens)
    row = Encoded((1, 2, 3, 4, 5), (False, False, False, True, True), (0, 5))
    parts = {name: Part((), (row,) * n) for name, n in (("train", 40), ("target", 3))}
    prepared = replace(source, **parts, development=Part((), (row,) * 6))
    found = outcome(source, tmp_path / "run", 0)
    found.prepared, found.engine = prepared, "first-order"
    found.starts.rows = (row,) * 4
    found.recipe = Recipe(batch_size=2, epochs=3)
    outer = OuterLoopConfig(objective=objective, segments=2, objective_rows=7, check_trainings=5)
    expert = ExpertConfig(experts=2, expert_batch=8, expert_epochs=1)
    found.config = DistillConfig(outer=outer, expert=expert)
    found.learned.metrics = [
        {"outer_step": 0, "development_text": 3.0},
        {"outer_step": 1},
        {"outer_step": 2, "development_text": 2.0},
    ]
    training = 6 * 2 * 5  # steps, rows, tokens
    looks = 2 * 2 * 5 * (training + 6 * 5 / 2)
    judged = {"target-loss": 3 * 5, "train-loss": 7 * 5, "trajectory": 0}[objective]
    held_out = 6 * 5 / 2 / expert.snapshot_every  # looks at validation rows, by step
    experts = 2 * 5 * (8 * 5 + held_out) if objective == "trajectory" else 0
    for window, pool in ((0, 3), (1, 3), (0, 0)):
        found.config = replace(found.config, outer=replace(outer, window=window, pool=pool))
        late = pool > 0 and objective != "trajectory"
        swept = window or (2 if late else 6)  # the last epoch, or all of it
        students = 3 * (6 - swept) * 2 * 5 if late else 0
        loops = (2 * 2 + 3) * (3 * swept * 2 * 5 + judged)  # three of them before learning
        expected = experts + students + loops + looks
        assert module._learning_flops(found) == pytest.approx(2 * expected)


def test_random_draws_are_those_of_distill(
    config: CompareConfig, source: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training another draw, none of them the starting rows; `nacd distill` has the same."""
    config = replace(config, seed=2, methods=("random",))
    folder = RunFolder(tmp_path / "grid")
    (found,) = rowsets(config, parse_budget("4"), source, config.recipe, folder, QUIET, list)
    drawn = [found.training(source, seed).data for seed in range(3)]
    assert all(data is not None for data in drawn)
    rows = [{row.ids for row in data.rows} for data in drawn if data is not None]
    assert all(len(own) == 4 for own in rows)
    assert rows[0] != rows[1] != rows[2] != rows[0]

    taken: list[RowSet] = []
    monkeypatch.setattr(Grid, "run", lambda _, sets, *__: taken.extend(sets))
    stub: Any = SimpleNamespace(
        prepared=source,
        recipe=config.recipe,
        clock=SimpleNamespace(stage=lambda _: QUIET.stage("", 1)),
        folder=folder,
    )
    one = replace(config.distillation(config.sizes[0], 0), compare=("random",))
    distilling._table(one, stub, QUIET)
    again = [taken[0].training(source, seed).data for seed in range(3)]
    assert [{row.ids for row in data.rows} for data in again if data is not None] == rows
