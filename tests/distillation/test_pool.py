"""Late windows: whose gradient they give, which student they start from, and that a run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from float64 import float64_only
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Example, Message, Splits, training_order
from nacd.data.rows import Rows, learnable_rows
from nacd.distillation.learn import Distiller, make_starts
from nacd.distillation.outer import OuterLoop
from nacd.distillation.pool import Pool, students, window_of
from nacd.distillation.segments import segment_maker
from nacd.meta import Exact, meta_gradient, unrolled_meta_gradient
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.prepare import prepare
from nacd.terminal.progress import Progress
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state

Folder = Callable[[str], Path]
RECIPE = Recipe(batch_size=2, epochs=3, learning_rate=5e-3)
LATE = OuterLoopConfig(objective="target-loss", pool=2, renew=2)


def test_which_steps_are_differentiated_through() -> None:
    recipe = Recipe(batch_size=8, epochs=4)
    assert window_of(LATE, recipe, 112) == (42, 14), "the last epoch"
    assert window_of(replace(LATE, window=5), recipe, 112) == (51, 5)
    assert window_of(replace(LATE, window=99), recipe, 112) == (0, 56)
    assert window_of(LATE, replace(recipe, epochs=1), 112) == (0, 14), "all of it"
    assert window_of(replace(LATE, pool=0), recipe, 112) == (0, 56)
    matching = replace(LATE, objective="trajectory", window=4)
    assert window_of(matching, recipe, 112) == (0, 4), "experts bring starts of their own"


def test_one_student_at_a_time_is_renewed() -> None:
    loop: Any = None
    pool = Pool(loop, 4, 1, replace(LATE, pool=3, renew=4), Path("none"))
    seen = [[pool.student(place, step) for place in range(3)] for step in range(0, 17, 4)]
    assert seen == [[0, 1, 2], [3, 1, 2], [3, 4, 2], [3, 4, 5], [6, 4, 5]]
    assert [pool.student(0, step) for step in range(3, 6)] == [0, 3, 3]
    assert students(replace(LATE, pool=3, renew=4), 17) == 7
    assert students(LATE, 0) == 0


def made(model: LoraModel) -> Rows:
    rows = [
        Encoded((1, 20 + i, 30, 40 + i, 50), (False,) * 3 + (True,) * 2, (1, 3)) for i in range(5)
    ]
    return learnable_rows(rows, "prompt", model.tokenizer.pad_token_id)


def test_a_late_window_has_the_gradient_of_the_unrolled_graph(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    with float64_only():
        model = load_model(
            ModelConfig(model=str(tiny_folder("llama")), dtype="float64", lora_rank=2)
        )
        data = made(model)
        vectors = model.embed(data.ids) * 1.1
        log_rate = torch.tensor(math.log(RECIPE.learning_rate), dtype=torch.float64)
        outer: Any = SimpleNamespace(pseudo=data, vectors=lambda: vectors, log_rate=log_rate)
        loop = InnerLoop(model, RECIPE, RECIPE.total_steps(5))
        prepared: Any = SimpleNamespace(model=model, target=SimpleNamespace(rows=data.rows))
        whole = segment_maker(prepared, RECIPE, LATE, 5, [])(7, 0)
        late = Pool(loop, 5, 6, LATE, tmp_path / "pool").late(whole, 7, 1, outer)
        assert late.order == whole.order[6:]
        assert late.start.count == 6

        theta = model.fresh_theta(500_003)  # student 3 is in place 1 at step 7
        visits = training_order(5, 2, 6, 500_003)
        own, _ = loop.run(
            Start(theta, initial_state(RECIPE, theta)),
            [data.batch(v) for v in visits],
            log_rate,
            vectors,
        )
        assert torch.equal(late.start.theta, own.theta)
        assert all(map(torch.equal, late.start.state, own.state))

        goal = own.theta + 0.1

        def objective(at: Tensor) -> tuple[float, Tensor]:
            return float(((at - goal) ** 2).sum()), 2 * (at - goal)

        batches = [data.batch(v) for v in late.order]
        common = (late.loop, late.start, batches, log_rate, vectors)
        found = meta_gradient(*common, objective, Exact())
        expected = unrolled_meta_gradient(*common, lambda at: ((at - goal) ** 2).sum())
    assert expected.vectors.abs().max() > 0
    assert torch.allclose(found.vectors, expected.vectors, rtol=1e-8, atol=1e-14)
    assert torch.allclose(found.log_rate, expected.log_rate, rtol=1e-8)


class Killed(BaseException):
    """As good as a kill: nothing may catch it."""


def test_a_run_through_late_windows_goes_on_with_the_same_rows(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [
        Example((Message("user", f"Name thing {i}"), Message("assistant", "a fox")), f"rows:{i}")
        for i in range(16)
    ]
    splits = Splits(examples[:8], examples[8:10], examples[10:13], examples[13:])
    outer = replace(
        LATE, outer_steps=4, segments=2, check_every=9, check_trainings=1, step_size=1.0
    )
    config = DistillConfig(
        model=ModelConfig(model=str(tiny_folder("llama")), lora_rank=2),
        data=DataConfig(data="rows", template="qa"),
        outer=outer,
    )
    prepared = prepare(config.model, config.data, splits=splits)
    starts = make_starts(prepared, range(5), "prompt")

    def distiller(folder: str) -> Distiller:
        quiet = Progress(quiet=True)
        return Distiller(config, prepared, starts, RECIPE, Exact(), [], tmp_path / folder, quiet)

    whole = distiller("whole").run()
    step, file = OuterLoop.step, "state.safetensors"
    for stop_at in (1, 3):  # student 2 came to its place at step 2

        def killed(self: OuterLoop, segments: Any, stop_at: int = stop_at) -> dict[str, float]:
            if self.done == stop_at:
                raise Killed
            return step(self, segments)

        monkeypatch.setattr(OuterLoop, "step", killed)
        with pytest.raises(Killed):
            distiller("stopped").run()
        assert len([*(tmp_path / "stopped" / "pool").iterdir()]) == 2
    monkeypatch.setattr(OuterLoop, "step", step)
    again = distiller("stopped").run()
    assert torch.equal(again.ids, whole.ids)
    assert torch.equal(again.soft, whole.soft)
    assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not (tmp_path / "stopped" / "pool").exists(), "nothing is left of what learning needed"
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line)["objective"] for line in lines[1:]]
    assert len(set(values)) == 4
