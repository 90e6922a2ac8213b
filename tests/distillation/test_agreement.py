"""How far inner loops agree: the formula against simulated ones, the advice, and real ones."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, Splits
from nacd.distillation.agreement import Agreement, advice, loops_for, measure, to_the_mean
from nacd.distillation.learn import Distiller, make_starts
from nacd.meta import Exact, meta_gradient
from nacd.model.lora import ModelConfig
from nacd.model.prepare import prepare
from nacd.terminal.progress import Progress

LATE = OuterLoopConfig(objective="train-loss")
RECIPE = Recipe(batch_size=8, epochs=4, learning_rate=5e-4)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_formula_is_that_of_signals_in_noise(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(20_000, generator=generator)
    loops = [signal + noise * torch.randn(20_000, generator=generator) for _ in range(12)]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.cosine_similarity(a, b, dim=0))

    c = statistics.fmean(cosine(a, b) for a, b in combinations(loops, 2))
    for count in (1, 3, 12):
        mean = torch.stack(loops[:count]).mean(0)
        assert to_the_mean(c, count) == pytest.approx(cosine(mean, signal), abs=0.02)


def test_how_many_loops_are_enough() -> None:
    assert [loops_for(c) for c in (0.12, 0.41, 0.47, 0.6, 1.0)] == [8, 2, 2, 1, 1]
    assert loops_for(0.0) is loops_for(-0.2) is loops_for(math.nan) is None
    for c in (0.03, 0.12, 0.3):
        needed = loops_for(c)
        assert needed is not None
        assert to_the_mean(c, needed) >= 0.7 > to_the_mean(c, needed - 1)


@pytest.mark.parametrize(
    ("cosines", "changes", "epochs", "said"),
    [
        ((0.5, 0.4), {"segments": 2}, 4, "^$"),
        ((0.5, 0.4), {}, 4, r"^Give --segments 2\.$"),
        ((0.12, 0.1), {}, 4, r"^Give --segments 8\.$"),
        (
            (0.06, 0.05),
            {"pool": 0},
            4,
            r"--pool 3 --window 14\); or choose real rows .*nacd select",
        ),
        ((0.06, 0.05), {}, 1, r"--epochs 4 --learning-rate 0\.000125; --tune"),
        ((0.06, -0.2), {}, 4, r"lower rate \(--learning-rate 0\.00025\).*--window 7\)"),
        ((0.0, 0.0), {"window": 30}, 4, r"shorter window \(--window 14\).*or choose real rows"),
        ((math.nan, 0.3), {}, 4, r"try --learning-rate 0\.00025, or another --window"),
    ],
)
def test_the_advice_names_what_to_change(
    cosines: tuple[float, ...], changes: dict[str, Any], epochs: float, said: str
) -> None:
    found = advice(cosines, replace(LATE, **changes), replace(RECIPE, epochs=epochs), 112)
    assert re.search(said, found), found
    shown = Agreement((*cosines, 0.1), 1, found).describe()
    assert shown.startswith("Agreement: ")
    assert max(map(len, shown.splitlines())) <= 80
    assert " ".join(shown.split()).endswith(found)


def test_the_loops_compared_are_those_that_learning_begins_with(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    turns = [(f"Name thing {i}", "a fox") for i in range(16)]
    rows = [
        Example((Message("user", user), Message("assistant", reply)), f"rows:{i}")
        for i, (user, reply) in enumerate(turns)
    ]
    splits = Splits(rows[:8], rows[8:10], rows[10:13], rows[13:])
    config = DistillConfig(
        model=ModelConfig(model=str(tiny_folder("llama")), lora_rank=2),
        data=DataConfig(data="rows", template="qa"),
        outer=OuterLoopConfig(objective="target-loss", segments=3),
    )
    prepared = prepare(config.model, config.data, splits=splits)
    starts = make_starts(prepared, range(5), "prompt")
    recipe = Recipe(batch_size=2, epochs=2, learning_rate=5e-3)
    quiet = Progress(quiet=True)
    distiller = Distiller(config, prepared, starts, recipe, Exact(), [], tmp_path, quiet)
    found = measure(distiller, 5)
    gradients = []
    for part in range(3):
        segment = distiller.segment(0, part)
        assert segment.start.count == 3
        swept = meta_gradient(
            segment.loop,
            segment.start,
            [starts.pseudo.batch(batch) for batch in segment.order],
            distiller.outer.log_rate.to(torch.float32),
            distiller.outer.vectors(),
            segment.objective,
            Exact(),
            trim=config.outer.trim,
        )
        gradients.append(distiller.outer.projection.pull(swept.vectors, 0.0).flatten())
    expected = [torch.cosine_similarity(a, b, dim=0) for a, b in combinations(gradients, 2)]
    assert found.cosines == pytest.approx([float(c) for c in expected], abs=1e-4)
    assert max(found.cosines) < 0.9999, "three starts and three orders"
    assert found.to_dict()["loops"] == loops_for(found.cosine)
