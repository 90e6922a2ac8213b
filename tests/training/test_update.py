"""The functional updates against torch.optim, and their VJPs against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.meta import clip, initial_state, step, step_vjp

RECIPES = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.3),
    "sgd-decay": Recipe(optimizer="sgd", learning_rate=0.3, weight_decay=0.1),
    "momentum": Recipe(optimizer="sgd", learning_rate=0.2, momentum=0.9, weight_decay=0.05),
    "adamw": Recipe(learning_rate=0.05),
    "adamw-decay": Recipe(learning_rate=0.05, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6),
}
CASES = [(name, limit) for name in RECIPES for limit in (0.0, 0.5, 100.0)]
SIZE = 12


def draw(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, generator=generator, dtype=torch.float64)


def torch_optimizer(recipe: Recipe, parameter: Tensor) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            [parameter],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    return torch.optim.AdamW(
        [parameter],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_steps_agree_with_torch_optim(name: str, limit: float) -> None:
    recipe = replace(RECIPES[name], clip=limit)
    theta = draw(0)
    state = initial_state(recipe, theta)
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = torch_optimizer(recipe, parameter)
    for k in range(6):
        gradient = draw(k + 1)
        gradient[:3] = 0  # LoRA's A at B = 0
        factor = recipe.rate(k, 6)
        rate = torch.tensor(recipe.learning_rate * factor, dtype=torch.float64)
        theta, state = step(recipe, theta, state, gradient, rate, k)
        parameter.grad = gradient.clone()
        if limit:
            torch.nn.utils.clip_grad_norm_([parameter], limit)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
        optimizer.step()
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-13, atol=1e-14)
    kept = optimizer.state[parameter]
    names = {0: [], 1: ["momentum_buffer"], 2: ["exp_avg", "exp_avg_sq"]}[len(state)]
    for ours, key in zip(state, names, strict=True):
        torch.testing.assert_close(ours, kept[key], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("root_eps", [0.0, 0.01])
@pytest.mark.parametrize(("name", "limit"), CASES)
def test_vjp_agrees_with_finite_differences(name: str, limit: float, root_eps: float) -> None:
    recipe = replace(RECIPES[name], clip=limit, root_eps=root_eps)
    theta, gradient = draw(0), draw(1)
    state = tuple(
        s + 0.1 + 0.1 * draw(i + 2) ** 2 for i, s in enumerate(initial_state(recipe, theta))
    )
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    cotangent = draw(10)
    cotangents = tuple(draw(11 + i) for i in range(len(state)))
    factor, count = 0.7, 4
    parts = step_vjp(recipe, theta, state, gradient, log_rate, factor, count, cotangent, cotangents)

    def value(flat: Tensor) -> float:
        theta, *state, gradient = flat[:-1].view(-1, SIZE).unbind()
        moved, new = step(recipe, theta, tuple(state), gradient, flat[-1].exp() * factor, count)
        pairs = zip((moved, *new), (cotangent, *cotangents), strict=True)
        return float(sum((x * c).sum() for x, c in pairs))

    flat = torch.cat([theta, *state, gradient, log_rate[None]])
    found = torch.cat([parts.theta, *parts.state, parts.gradient, parts.log_rate[None]])
    expected = torch.empty_like(found)
    for i in range(len(flat)):
        move = torch.zeros_like(flat)
        move[i] = 1e-6
        expected[i] = (value(flat + move) - value(flat - move)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("limit", [0.0, 0.5])
@pytest.mark.parametrize("name", RECIPES)
def test_zero_gradient_entries_have_finite_derivatives(name: str, limit: float) -> None:
    """LoRA starts at B = 0, where A's gradient, and AdamW's second moment, are exactly 0."""
    recipe = replace(RECIPES[name], clip=limit)
    theta, gradient = draw(0), draw(1)
    gradient[:5] = 0
    state = initial_state(recipe, theta)
    log_rate = torch.tensor(math.log(recipe.learning_rate), dtype=torch.float64)
    cotangents = tuple(torch.ones_like(theta) for _ in state)
    new_theta, _ = step(recipe, theta, state, gradient, log_rate.exp(), 0)
    parts = step_vjp(recipe, theta, state, gradient, log_rate, 1.0, 0, draw(2), cotangents)
    for tensor in (new_theta, parts.theta, *parts.state, parts.gradient, parts.log_rate):
        assert torch.isfinite(tensor).all()
    if recipe.optimizer == "adamw":
        decayed = theta[:5] * (1 - log_rate.exp() * recipe.weight_decay)
        assert torch.equal(new_theta[:5], decayed)
        if limit == 0:  # the second moment's own part is 2 (1 - beta2) g = 0, the step's is cut
            own = torch.full((5,), 1 - recipe.beta1, dtype=torch.float64)
            torch.testing.assert_close(parts.gradient[:5], own)


def test_an_all_zero_gradient_is_no_nan() -> None:
    recipe = Recipe(clip=1.0)
    theta, zero = draw(0), torch.zeros(SIZE, dtype=torch.float64)
    assert torch.equal(clip(zero, 1.0), zero)
    log_rate = torch.tensor(-3.0, dtype=torch.float64)
    state = initial_state(recipe, theta)
    parts = step_vjp(recipe, theta, state, zero, log_rate, 1.0, 0, draw(1), state)
    assert torch.equal(parts.theta, draw(1))
    assert torch.equal(parts.gradient, zero)
    assert parts.log_rate == 0
