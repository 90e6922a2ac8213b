"""The worth of rows against one autograd graph in which every row has a weight, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from float64 import float64_only
from nacd.config.recipe import Recipe
from nacd.data import Batch
from nacd.meta import (
    FirstOrder,
    InnerLoop,
    Start,
    initial_state,
    step,
    unvisited,
    weight_gradient,
)
from nacd.model.lora import LoraModel, ModelConfig, load_model, twice_differentiable
from tiny import ROWS

RECIPES = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.3, warmup=0.0, clip=0.05),
    "momentum": Recipe(optimizer="sgd", learning_rate=0.05, momentum=0.9, warmup=0.0, clip=0.0),
    "adamw": Recipe(learning_rate=5e-3, warmup=0.0, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def models(tiny_folder: Callable[[str], Path]) -> dict[str, LoraModel]:
    return {
        arch: load_model(ModelConfig(model=str(tiny_folder(arch)), dtype="float64", lora_rank=2))
        for arch in ("llama", "gpt2", "gemma3")
    }


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with float64_only():
        yield


def random_batch(seed: int) -> Batch:
    """Four rows whose responses have 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, ROWS - 10, (4, 9), generator=generator)
    response = torch.zeros_like(ids, dtype=torch.bool)
    for row in range(4):
        response[row, 5 : 6 + row] = True
    return Batch(ids, torch.ones_like(ids), response, torch.full_like(ids, -1))


def token_losses(model: LoraModel, theta: Tensor, batch: Batch) -> Tensor:
    """Every label's NLL, by the model's plain forward: (n,)."""
    logits = torch.func.functional_call(
        model.hf,
        model.named_theta(theta),
        (),
        {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False},
    ).logits[:, :-1]
    picked = -logits.log_softmax(-1).gather(2, batch.ids[:, 1:, None])[..., 0]
    return picked[batch.response[:, 1:]]


def unrolled(
    loop: InnerLoop,
    start: Start,
    batches: Sequence[Batch],
    log_rate: Tensor,
    objective: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    weights = [torch.ones(4, dtype=torch.float64, requires_grad=True) for _ in batches]
    theta, state = start.theta.detach().requires_grad_(), start.state
    with twice_differentiable():
        for k, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            counts = batch.response.sum(1)
            losses = token_losses(loop.model, theta, batch)
            loss = (weight.repeat_interleave(counts) * losses).sum() / counts.sum()
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta, state = step(loop.recipe, theta, state, gradient, loop.rate(log_rate, k), k)
        return [*torch.autograd.grad(objective(theta), weights)]


@pytest.mark.parametrize(
    ("arch", "name", "trained", "steps"),
    [*itertools.product(("llama", "gpt2", "gemma3"), RECIPES, (False, True), (1, 3))],
)
def test_every_weight_agrees_with_the_unrolled_graph(
    models: dict[str, LoraModel], arch: str, name: str, trained: bool, steps: int
) -> None:
    model, recipe = models[arch], RECIPES[name]
    loop = InnerLoop(model, recipe, 9)
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    theta = model.fresh_theta(3)
    start = Start(theta, initial_state(recipe, theta))
    if trained:
        end, _ = loop.run(start, [random_batch(40 + i) for i in range(4)], log_rate, None)
        start = replace(end, count=0)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)).double()
    goal = start.theta + 0.1 * noise
    batches = [random_batch(100 + i) for i in range(steps)]

    expected = unrolled(loop, start, batches, log_rate, lambda x: ((x - goal) ** 2).sum())
    best = math.inf
    for eps in (1e-3, 1e-4, 1e-5):
        swept, found = weight_gradient(
            loop,
            start,
            batches,
            log_rate,
            lambda x: (float(((x - goal) ** 2).sum()), 2 * (x - goal)),
            FirstOrder(eps),
        )
        a, b = torch.cat(found), torch.cat(expected)
        best = min(best, float((a - b).norm() / b.norm()))
        assert len(swept.losses) == steps
    assert torch.cat(expected).abs().max() > 0
    assert best < 1e-6


@pytest.mark.parametrize("trim", [0.0, 0.02])
def test_one_step_against_each_rows_own_gradient(models: dict[str, LoraModel], trim: float) -> None:
    """One step of plain SGD: a row is worth -lr times its gradient along the clamped cotangent."""
    model = models["llama"]
    recipe = Recipe(optimizer="sgd", learning_rate=0.1, warmup=0.0, clip=0.0)
    loop = InnerLoop(model, recipe, 9)
    start = Start(model.fresh_theta(3) + 0.05, ())
    log_rate = torch.tensor(math.log(0.1), dtype=torch.float64)
    batch = random_batch(7)
    slope = torch.randn(model.size, generator=torch.Generator().manual_seed(2)).double() ** 5

    _, (found,) = weight_gradient(
        loop, start, [batch], log_rate, lambda _: (0.0, slope), FirstOrder(1e-4), trim=trim
    )
    along = -0.1 * slope
    if trim:
        limit = along.abs().sort().values[-round(trim * len(along)) - 1]
        along = along.clamp(-limit, limit)
    counts = batch.response.sum(1)
    theta = start.theta.clone().requires_grad_()
    losses = token_losses(model, theta, batch).split(counts.tolist())
    rows = [torch.autograd.grad(x.sum(), theta, retain_graph=True)[0] for x in losses]
    expected = torch.stack([row @ along for row in rows]) / counts.sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("central", [True, False])
def test_rows_are_weighed_eps_theta_apart(models: dict[str, LoraModel], central: bool) -> None:
    model, recipe = models["llama"], RECIPES["sgd"]
    asked: list[Tensor] = []

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def rows_and_grad(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            asked.append(theta.clone())
            return model.rows_and_grad(theta, batch)

    loop = InnerLoop(Spy(), recipe, 9)  # pyright: ignore[reportArgumentType]
    theta = model.fresh_theta(3)
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    engine = FirstOrder(1e-3, central=central)
    start = Start(theta, initial_state(recipe, theta))
    weight_gradient(
        loop, start, [random_batch(1)], log_rate, lambda x: (0.0, torch.ones_like(x)), engine
    )
    moved = [float((x - theta).norm() / theta.norm()) for x in asked]
    assert moved == pytest.approx([0.0, 1e-3, 1e-3] if central else [0.0, 1e-3], rel=1e-6)


def test_one_sided_is_the_same_to_first_order(models: dict[str, LoraModel]) -> None:
    model, recipe = models["llama"], RECIPES["momentum"]
    loop = InnerLoop(model, recipe, 9)
    theta = model.fresh_theta(3)
    start = Start(theta, initial_state(recipe, theta))
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    batches = [random_batch(i) for i in range(3)]

    def weigh(engine: FirstOrder) -> Tensor:
        def objective(x: Tensor) -> tuple[float, Tensor]:
            return float((x**2).sum()), 2 * x

        return torch.cat(weight_gradient(loop, start, batches, log_rate, objective, engine)[1])

    central, rough, fine = (
        weigh(FirstOrder(eps, central=central))
        for eps, central in ((1e-4, True), (1e-2, False), (1e-3, False))
    )
    errors = [float((x - central).norm() / central.norm()) for x in (rough, fine)]
    assert 0 < errors[0] < 0.1
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3), "the error is linear in eps"


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("name", RECIPES)
def test_rows_beside_a_training_against_the_unrolled_graph(
    models: dict[str, LoraModel], arch: str, name: str
) -> None:
    """A row of weight 0 in a batch of a training, through a late window of it."""
    model, recipe = models[arch], RECIPES[name]
    loop, steps = InnerLoop(model, recipe, 9), 3
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    theta = model.fresh_theta(3)
    start = Start(theta, initial_state(recipe, theta))
    start, _ = loop.run(start, [random_batch(40 + i) for i in range(4)], log_rate, None)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)).double()
    goal = start.theta + 0.1 * noise
    batches = [random_batch(100 + i) for i in range(steps)]
    beside = {0: [random_batch(7), random_batch(8)], 2: [random_batch(9)]}

    weights = {
        i: torch.zeros(4 * len(found)).double().requires_grad_() for i, found in beside.items()
    }
    x, state = start.theta.detach().requires_grad_(), start.state
    with twice_differentiable():
        for i, (k, batch) in enumerate(enumerate(batches, start.count)):
            loss = token_losses(model, x, batch).sum()
            for j, other in enumerate(beside.get(i, [])):
                counts = other.response.sum(1)
                weight = weights[i][4 * j : 4 * j + 4].repeat_interleave(counts)
                loss = loss + (weight * token_losses(model, x, other)).sum()
            (gradient,) = torch.autograd.grad(loss / batch.response.sum(), x, create_graph=True)
            x, state = step(recipe, x, state, gradient, loop.rate(log_rate, k), k)
        expected = torch.autograd.grad(((x - goal) ** 2).sum(), [*weights.values()])

    best = math.inf
    for eps in (1e-3, 1e-4, 1e-5):
        _, found = unvisited(
            loop,
            start,
            batches,
            log_rate,
            lambda x: (float(((x - goal) ** 2).sum()), 2 * (x - goal)),
            FirstOrder(eps),
            beside,
            eps=eps,
        )
        a, b = torch.cat([found[0], found[2]]), torch.cat(expected)
        best = min(best, float((a - b).norm() / b.norm()))
    assert torch.cat(expected).abs().min() > 0
    assert best < 1e-6
