"""The segments that outer steps learn from: which rows they visit, and in what order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nacd.config import OuterLoopConfig
from nacd.meta import Start, initial_state
from nacd.models import ModelConfig, load_model
from nacd.recipe import Recipe
from nacd.segments import segment_maker

Folder = Callable[[str], Path]
ROWS = 10


def segments(folder: Path, recipe: Recipe, outer: OuterLoopConfig, count: int) -> list[Any]:
    model = load_model(ModelConfig(model=str(folder), lora_rank=1, device="cpu"))
    prepared: Any = SimpleNamespace(model=model, target=SimpleNamespace(rows=()))

    def snapshot(step: int, _: Any) -> Start:
        theta = torch.full((model.size,), float(step))
        return Start(theta, initial_state(recipe, theta), step)

    expert: Any = SimpleNamespace(steps=[0, 4, 8], state="full", snapshot=snapshot)
    make = segment_maker(prepared, recipe, outer, ROWS, [expert])
    return [make(step, 0) for step in range(count)]


def test_a_recipe_in_order_visits_the_rows_as_they_are(tiny_folder: Folder) -> None:
    recipe = Recipe(batch_size=4, epochs=2, shuffle=False)
    first, second = segments(tiny_folder("gpt2"), recipe, OuterLoopConfig(), 2)
    epoch = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert first.order == second.order == epoch + epoch
    assert not torch.equal(first.start.theta, second.start.theta)


def test_a_recipe_that_shuffles_takes_a_new_order_each_time(tiny_folder: Folder) -> None:
    recipe = Recipe(batch_size=4, epochs=1)
    found = segments(tiny_folder("gpt2"), recipe, OuterLoopConfig(), 3)
    assert len({str(segment.order) for segment in found}) == 3
    for segment in found:
        assert sorted(chain(*segment.order)) == list(range(ROWS))


def test_short_matches_in_order_are_windows_of_it(tiny_folder: Folder) -> None:
    recipe = Recipe(batch_size=2, epochs=1, shuffle=False)
    outer = OuterLoopConfig(objective="trajectory", window=2, expert_start=8)
    found = segments(tiny_folder("gpt2"), recipe, outer, 12)
    windows = [[[k, k + 1], [k + 2, k + 3]] for k in (0, 2, 4, 6)]
    assert all(segment.order in windows for segment in found)
    assert len({str(segment.order) for segment in found}) > 1
