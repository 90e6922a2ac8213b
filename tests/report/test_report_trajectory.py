"""Which segments are matched, against the real segment maker; and the chart of the experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from made_run import add_expert, make_run
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.distillation.segments import segment_maker
from nacd.meta import Start, initial_state
from nacd.model.lora import ModelConfig, load_model
from nacd.report import trajectory
from nacd.store.folder import read_run

Folder = Callable[[str], Path]


class Asked:
    """An expert that notes which snapshots are read from it."""

    state = "recorded"

    def __init__(self, number: int, steps: list[int], size: int, notes: list[tuple[int, int]]):
        self.number, self.steps, self.size, self.notes = number, steps, size, notes

    def snapshot(self, step: int, device: Any) -> Start:
        self.notes.append((self.number, step))
        theta = torch.full((self.size,), float(step))
        return Start(theta, initial_state(Recipe(), theta), step)


@pytest.mark.parametrize(
    ("latest", "ahead", "segments", "experts"),
    [(0, 0, 1, 1), (8, 4, 2, 2), (5, 100, 1, 3), (99, 2, 1, 1)],
)
def test_agrees_with_the_segment_maker(
    tiny_folder: Folder, latest: int, ahead: int, segments: int, experts: int
) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder("llama")), lora_rank=1, device="cpu"))
    outer = OuterLoopConfig(
        objective="trajectory",
        expert_start=latest,
        expert_ahead=ahead,
        segments=segments,
    )
    steps = [[0, 4, 8, 10], [0, 3, 6, 9, 10], [0, 5, 10]][:experts]
    notes: list[tuple[int, int]] = []
    recorded: Any = [Asked(i, own, model.size, notes) for i, own in enumerate(steps)]
    prepared: Any = SimpleNamespace(model=model, target=SimpleNamespace(rows=()))
    make = segment_maker(prepared, Recipe(batch_size=2, epochs=1), outer, 4, recorded)
    for step in range(6):
        for part in range(segments):
            notes.clear()
            make(step, part)
            (expert, first), (_, goal) = notes
            found = trajectory.segment(step * segments + part, steps, latest=latest, ahead=ahead)
            assert found == (expert, first, goal)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    outer = OuterLoopConfig(objective="trajectory", outer_steps=6, expert_start=8, expert_ahead=4)
    config = DistillConfig(data=DataConfig(data="d.jsonl"), outer=outer)
    return make_run(tmp_path / "run", config=config)


def test_losses_stand_at_the_steps_that_they_are_of(folder: Path) -> None:
    add_expert(folder, 0, total=10, every=4, held_out=True)
    run = read_run(folder)
    chart = trajectory.chart(run)
    assert chart is not None
    batches, held, *bars = chart.data
    assert batches["x"] == list(range(1, 11))  # the loss at the batch of step 1 came first
    assert batches["y"][0] == 3.0
    assert (held["x"], held["y"][0]) == ([0, 4, 8, 10], 3.2)
    drawn = [(bar["x"][0], bar["x"][1]) for bar in bars]
    assert drawn == [(first, goal) for _, first, goal in trajectory.matched(run)]
    assert set(drawn) <= {(0, 4), (4, 8), (8, 10)}


def test_without_held_out_losses_the_caption_says_so(folder: Path) -> None:
    add_expert(folder, 0, total=10, every=4, held_out=False)
    add_expert(folder, 1, total=10, every=5, held_out=False)
    chart = trajectory.chart(read_run(folder))
    assert chart is not None
    assert "held-out loss was not recorded" in chart.caption
    assert chart.title == "Expert trajectories"


def test_experts_of_another_objective_have_no_segments(folder: Path) -> None:
    add_expert(folder, 0, total=10, every=4, held_out=False)
    run = read_run(folder)
    other = replace(run, config={**run.config, "outer": {"objective": "target-loss"}})
    assert trajectory.matched(other) == []
    assert trajectory.chart(other) is not None
    assert trajectory.chart(replace(run, experts=[])) is None


def test_segments_in_words() -> None:
    assert trajectory.describe([], 1) == ""
    one = trajectory.describe([(0, 0, 10)], 1)
    assert one == "1 segment of 1 expert, starting at step 0, 10 expert steps long."
    two = trajectory.describe([(0, 0, 4), (1, 4, 10)], 2)
    assert two == "2 segments of 2 experts, starting at step 0 to 4, 4 to 6 expert steps long."
