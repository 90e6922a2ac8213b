"""Optimiser steps as pure functions of flat vectors, and their vector-Jacobian products.

One step is (theta, s)' = U(theta, s, g, lr): clipping, weight decay and the optimiser, no model in
it, so its VJP costs next to nothing. The updates agree with `torch.optim.SGD`, `torch.optim.AdamW`
and `torch.nn.utils.clip_grad_norm_` step for step.

Where AdamW's second moment is exactly zero (LoRA's A at B = 0, whose gradient is exactly 0), the
entry's step and its derivative are taken to be 0: the square root has no derivative there, and the
step is 0 whatever epsilon is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nacd.config.recipe import Recipe

State = tuple[Tensor, ...]
"""Optimiser state, each (P,): (m, v) for AdamW, (momentum buffer,) for SGD with momentum, or ()."""


def initial_state(recipe: Recipe, theta: Tensor) -> State:
    """The optimiser's state before the first step, zeros like theta (P,)."""
    count = 2 if recipe.optimizer == "adamw" else int(recipe.momentum > 0)
    return tuple(torch.zeros_like(theta) for _ in range(count))


def clip(gradient: Tensor, limit: float) -> Tensor:
    """Scale a gradient (P,) down to norm `limit`, as `clip_grad_norm_` does; 0: leave it."""
    if limit <= 0:
        return gradient
    square = (gradient * gradient).sum()
    norm = torch.where(square != 0, square, torch.ones_like(square)).sqrt()  # NaN stays NaN
    return gradient * torch.clamp(limit / (norm + 1e-6), max=1.0)


def step(
    recipe: Recipe, theta: Tensor, state: State, gradient: Tensor, rate: Tensor, count: int
) -> tuple[Tensor, State]:
    """One optimiser step.

    Args:
        recipe: the optimiser and its constants.
        theta: (P,).
        state: as `initial_state` makes it.
        gradient: (P,), unclipped.
        rate: learning rate of this step, ().
        count: 0-based index of the step since the state was zero (AdamW's bias correction).

    Returns:
        The new theta and state.
    """
    g = clip(gradient, recipe.clip)
    if recipe.optimizer == "sgd":
        if recipe.weight_decay:
            g = g + recipe.weight_decay * theta
        if recipe.momentum > 0:
            g = recipe.momentum * state[0] + g
            return theta - rate * g, (g,)
        return theta - rate * g, ()
    m = torch.lerp(state[0], g, 1 - recipe.beta1)
    v = recipe.beta2 * state[1] + (1 - recipe.beta2) * g * g
    root = v / (1 - recipe.beta2 ** (count + 1)) + recipe.root_eps
    moved = root != 0  # of NaN too, which would else freeze its entry, unseen
    denominator = torch.where(moved, root, torch.ones_like(root)).sqrt() + recipe.eps
    move = torch.where(moved, m / denominator, torch.zeros_like(m))
    if recipe.weight_decay:
        theta = theta * (1 - rate * recipe.weight_decay)
    return theta - rate / (1 - recipe.beta1 ** (count + 1)) * move, (m, v)


@dataclass(frozen=True)
class StepCotangents:
    """The VJP of one step: what the cotangents of its result become at its inputs."""

    theta: Tensor
    """(P,), without the part that runs through the gradient."""
    state: State
    gradient: Tensor
    """(P,): the v of the second-order products."""
    log_rate: Tensor
    """(), with respect to the logarithm of the learning rate."""


def step_vjp(
    recipe: Recipe,
    theta: Tensor,
    state: State,
    gradient: Tensor,
    log_rate: Tensor,
    factor: float,
    count: int,
    cotangent: Tensor,
    state_cotangent: State,
) -> StepCotangents:
    """Pull cotangents of (theta', state') back through a step at rate exp(log_rate) * factor."""
    inputs = [x.detach().requires_grad_() for x in (theta, *state, gradient, log_rate)]
    with torch.enable_grad():
        new_theta, new_state = step(
            recipe, inputs[0], tuple(inputs[1:-2]), inputs[-2], inputs[-1].exp() * factor, count
        )
        grads = torch.autograd.grad(
            (new_theta, *new_state),
            inputs,
            (cotangent, *state_cotangent),
            allow_unused=True,
            materialize_grads=True,
        )
    return StepCotangents(grads[0], tuple(grads[1:-2]), grads[-2], grads[-1])
