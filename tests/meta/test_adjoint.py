"""Every engine against one autograd graph over all inner steps, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from float64 import float64_only
from nacd.config.recipe import Recipe
from nacd.data import Batch
from nacd.meta import (
    Exact,
    FirstOrder,
    InnerLoop,
    MetaGradient,
    Start,
    clamp_largest,
    initial_state,
    meta_gradient,
    unrolled_meta_gradient,
)
from nacd.model.lora import LoraModel, ModelConfig, load_model
from tiny import ARCHITECTURES, ROWS

Folder = Callable[[str], Path]
VECTORS = 9
RECIPES = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.3, warmup=0.0),
    "momentum": Recipe(
        optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.01, warmup=0.0
    ),
    "adamw": Recipe(learning_rate=5e-3, warmup=0.0, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def models(tiny_folder: Folder) -> dict[str, LoraModel]:
    return {
        arch: load_model(ModelConfig(model=str(tiny_folder(arch)), dtype="float64", lora_rank=2))
        for arch in ARCHITECTURES
    }


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with float64_only():
        yield


def random_batch(seed: int, vectors: int = VECTORS) -> Batch:
    """Three rows of unlike length; three vectors in each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, ROWS - 10, (3, 10), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, 8:] = 0
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, 6:9] = True
    response[1, 8:] = False
    slots = torch.full_like(ids, -1)
    picked = torch.randperm(vectors, generator=generator)
    for row in range(3):
        slots[row, 2:5] = picked[3 * row : 3 * row + 3]
    return Batch(ids, attention, response, slots)


def start_of(model: LoraModel, recipe: Recipe, trained: bool) -> Start:
    theta = model.fresh_theta(3)
    start = Start(theta, initial_state(recipe, theta))
    if not trained:
        return start
    loop = InnerLoop(model, recipe, 12)
    batches = [random_batch(50 + i) for i in range(4)]
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    return loop.run(start, batches, log_rate, initial_vectors(model))[0]


def initial_vectors(model: LoraModel) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, ROWS - 10, (VECTORS,), generator=generator)
    return model.embed(ids) * 1.1


def goal_of(start: Start) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(start.theta.shape, generator=generator, dtype=torch.float64)
    return start.theta + 0.1 * noise


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def error(found: MetaGradient, expected: MetaGradient) -> float:
    return max(
        relative(found.vectors, expected.vectors), relative(found.log_rate, expected.log_rate)
    )


CASES = [
    pytest.param(
        arch, name, clip, trained, steps, marks=[pytest.mark.slow] * (steps == 5 or arch == "opt")
    )
    for arch, name, clip, trained, steps in itertools.product(
        ARCHITECTURES, RECIPES, (0.0, 0.05), (False, True), (1, 2, 5)
    )
]


@pytest.mark.parametrize(("arch", "name", "clip", "trained", "steps"), CASES)
def test_engines_agree_with_the_unrolled_graph(
    models: dict[str, LoraModel], arch: str, name: str, clip: float, trained: bool, steps: int
) -> None:

    model, recipe = models[arch], replace(RECIPES[name], clip=clip)
    start = start_of(model, recipe, trained)
    goal = goal_of(start)
    length = ((start.theta - goal) ** 2).sum()

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        return float(((theta - goal) ** 2).sum() / length), 2 * (theta - goal) / length

    def graph_objective(theta: Tensor) -> Tensor:
        return ((theta - goal) ** 2).sum() / length

    loop = InnerLoop(model, recipe, 12)
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    vectors = initial_vectors(model)
    batches = [random_batch(100 + i) for i in range(steps)]
    common = (loop, start, batches, log_rate, vectors)
    expected = unrolled_meta_gradient(*common, graph_objective)
    assert expected.vectors.abs().max() > 0
    exact = meta_gradient(*common, objective, Exact())
    assert exact.value == pytest.approx(expected.value, rel=1e-10)
    assert error(exact, expected) < 1e-9
    best = min(
        error(meta_gradient(*common, objective, FirstOrder(eps)), expected)
        for eps in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    )
    assert best < 1e-6


@pytest.mark.parametrize("name", RECIPES)
def test_the_rest_of_the_sweep(models: dict[str, LoraModel], name: str) -> None:
    """lambda_0 by finite differences, theta_N and the losses by the loop itself."""
    model, recipe = models["llama"], replace(RECIPES[name], clip=0.05)
    start = start_of(model, recipe, trained=True)
    goal = goal_of(start)
    loop = InnerLoop(model, recipe, 12)
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    vectors, batches = initial_vectors(model), [random_batch(100 + i) for i in range(3)]

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        return float(((theta - goal) ** 2).sum()), 2 * (theta - goal)

    def value(theta: Tensor) -> float:
        end, _ = loop.run(replace(start, theta=theta), batches, log_rate, vectors)
        return objective(end.theta)[0]

    found = meta_gradient(loop, start, batches, log_rate, vectors, objective, Exact())
    end, losses = loop.run(start, batches, log_rate, vectors)
    torch.testing.assert_close(found.end, end.theta, rtol=1e-12, atol=0.0)
    assert found.losses == pytest.approx(losses, rel=1e-12)
    assert found.value == pytest.approx(objective(end.theta)[0], rel=1e-12)
    first = float(objective(end.theta)[1].norm())
    assert found.cotangent_norms[0] == pytest.approx(first, rel=1e-12)
    assert found.cotangent_norms[-1] == pytest.approx(float(found.theta.norm()), rel=1e-12)
    assert len(found.cotangent_norms) == 1 + len(batches)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        v = torch.randn(model.size, generator=generator).double()
        v *= 1e-5 * start.theta.norm() / v.norm()
        slope = (value(start.theta + v) - value(start.theta - v)) / 2
        assert float(found.theta @ v) == pytest.approx(slope, rel=1e-5)


def test_clamping_the_largest_entries() -> None:
    v = torch.tensor([0.1, -50.0, 0.3, -0.2, 0.0, 1e9, 0.25, 0.05, -0.15, 0.4]).double()
    expected = v.clamp(-0.4, 0.4)
    torch.testing.assert_close(clamp_largest(v, 0.2), expected)
    assert clamp_largest(v, 0.0) is v


def test_trimming_changes_the_gradient_and_tames_it(models: dict[str, LoraModel]) -> None:
    model, recipe = models["llama"], RECIPES["adamw"]
    start = start_of(model, recipe, trained=False)
    goal = goal_of(start)

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        return float(((theta - goal) ** 2).sum()), 2 * (theta - goal)

    loop = InnerLoop(model, recipe, 12)
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    batches = [random_batch(100 + i) for i in range(3)]
    common = (loop, start, batches, log_rate, initial_vectors(model), objective, Exact())
    plain, tamed = meta_gradient(*common), meta_gradient(*common, trim=0.05)
    assert tamed.value == plain.value
    assert max(tamed.cotangent_norms) <= max(plain.cotangent_norms)
    assert relative(tamed.vectors, plain.vectors) > 1e-3
