"""The segments that outer steps learn from: which rows they visit, and in what order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from nacd.config import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.distillation.outer import Segment
from nacd.distillation.segments import matched_steps, segment_generator, segment_maker, windowed
from nacd.errors import UserError
from nacd.meta import Start, initial_state
from nacd.model.lora import ModelConfig, load_model
from nacd.training.evaluation import response_nll

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
    first, second = segments(
        tiny_folder("gpt2"), recipe, OuterLoopConfig(objective="target-loss"), 2
    )
    epoch = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert first.order == second.order == epoch + epoch
    assert not torch.equal(first.start.theta, second.start.theta)


def test_a_recipe_that_shuffles_takes_a_new_order_each_time(tiny_folder: Folder) -> None:
    recipe = Recipe(batch_size=4, epochs=1)
    found = segments(tiny_folder("gpt2"), recipe, OuterLoopConfig(objective="target-loss"), 3)
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


def test_the_loss_on_training_rows_is_one_on_other_rows_each_time(tiny_folder: Folder) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=1, device="cpu"))
    pool = [Encoded((5, 6, 7, 8 + i), (False, False, False, True), (0, 2)) for i in range(30)]
    prepared: Any = SimpleNamespace(model=model, target=SimpleNamespace(rows=pool[:3]))
    recipe = Recipe(batch_size=4, epochs=1, shuffle=False)
    theta = model.fresh_theta(0)

    def values(outer: OuterLoopConfig) -> list[float]:
        make = segment_maker(prepared, recipe, outer, ROWS, [], pool)
        return [make(step, 0).objective(theta)[0] for step in (0, 1, 0)]

    first, second, again = values(OuterLoopConfig(objective="train-loss", objective_rows=5))
    assert first == again
    assert first != second
    everything = values(OuterLoopConfig(objective="train-loss", objective_rows=99))
    assert everything[0] == pytest.approx(response_nll(model, theta, pool).mean, rel=1e-5)
    fixed = values(OuterLoopConfig(objective="target-loss"))
    assert (
        fixed[0] == fixed[1] == pytest.approx(response_nll(model, theta, pool[:3]).mean, rel=1e-5)
    )


def test_a_stretch_of_an_expert() -> None:
    """Every snapshot to start from is drawn; the goal is the first snapshot so many steps on."""
    steps = [0, 4, 8, 10]

    def stretches(latest: int, ahead: int) -> set[tuple[int, int]]:
        drawn = (segment_generator(number) for number in range(60))
        return {matched_steps(steps, latest, ahead, generator) for generator in drawn}

    assert stretches(0, 0) == {(0, 10)}
    assert stretches(8, 0) == {(0, 10), (4, 10), (8, 10)}
    assert stretches(99, 4) == {(0, 4), (4, 8), (8, 10)}, "never from the end"
    assert stretches(5, 5) == {(0, 8), (4, 10)}, "a goal between two snapshots is the later one"
    assert matched_steps([3, 9], 0, 2, segment_generator(0)) == (3, 9)


def test_an_expert_that_stands_still_is_refused_at_once(tiny_folder: Folder) -> None:
    """A warm-up begins at rate 0: after its first step the expert is where it was."""
    model = load_model(ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=1, device="cpu"))
    prepared: Any = SimpleNamespace(model=model, target=SimpleNamespace(rows=()))
    recipe = Recipe(batch_size=4, epochs=2)

    def snapshot(step: int, _: Any) -> Start:
        theta = torch.full((model.size,), float(max(0, step - 1)))
        return Start(theta, initial_state(recipe, theta), step)

    expert: Any = SimpleNamespace(steps=[0, 1, 2, 3], state="x", snapshot=snapshot, folder="e/0")
    for ahead, still in ((1, True), (2, False), (0, False)):
        outer = OuterLoopConfig(objective="trajectory", expert_ahead=ahead)
        if still:
            with pytest.raises(UserError, match=r"--expert-ahead 1: .* e/0 does not move from"):
                segment_maker(prepared, recipe, outer, ROWS, [expert])
        else:
            value, _ = segment_maker(prepared, recipe, outer, ROWS, [expert])(0, 0).objective(
                torch.zeros(model.size)
            )
            assert value == 1.0


def test_a_window_in_which_nothing_moves_is_not_drawn() -> None:
    total, seen = 4, set()
    loop: Any = SimpleNamespace(recipe=Recipe(), run=lambda *_: (None, []))
    vectors = torch.zeros(1, 2)
    outer: Any = SimpleNamespace(
        pseudo=SimpleNamespace(batch=lambda rows: rows),
        vectors=lambda: vectors,
        log_rate=torch.zeros(()),
    )
    segment = Segment(loop, cast(Any, None), [[k] for k in range(total)], cast(Any, None))
    for step in range(40):
        ((first,),) = windowed(segment, 1, step, outer).order
        seen.add(first)
    assert seen == {1, 2, 3}, "the first step's rate is 0"
    loop.recipe = Recipe(warmup=0.0)
    drawn = [windowed(segment, 1, step, outer).order[0][0] for step in range(40)]
    assert set(drawn) == {0, 1, 2, 3}
    plain = [int(np.random.default_rng((step, 23)).integers(0, 4)) for step in range(40)]
    assert drawn == plain, "as always where every window moves"
