"""Train a student on rows by the recipe, in the inner loop's own arithmetic, and measure it.

The same updates as the inner loop's and as `torch.optim`'s, so that learned vectors and texts are
compared in one trainer, batch by batch; on the same text, its loss curve is that of `nacd train`
(TRL's SFTTrainer), which a test holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.rows import Rows, training_order
from nacd.errors import UserError
from nacd.model.lora import LoraModel
from nacd.training.evaluation import response_nll
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state

CHECK_SEED = 2000
"""Checks on the validation rows train from LoRA seeds 2000, 2001, ..."""
TUNING_SEED = 3000
"""The learning rate is tuned at this seed."""
LEARNING_SEED = 10_000
"""Learning trains from LoRA seeds 10000, 10001, ...; the table's trainings have 0, 1, ..."""
POOL_SEED = 500_000
"""Students that late windows start from are trained from LoRA seeds 500000, 500001, ..."""
EXPERT_SEED = 1_000_000
"""Experts train from LoRA seeds 1000000, 1000001, ...: a student starts where its expert did."""

Tick = Callable[[int, int, float], None]
"""(step, steps, loss)."""


def train_student(
    model: LoraModel,
    recipe: Recipe,
    data: Rows,
    seed: int,
    *,
    vectors: Tensor | None = None,
    steps: int | None = None,
    tick: Tick | None = None,
) -> Tensor:
    """Train LoRA from its seeded initial values on the rows.

    Args:
        model: the model; its LoRA is overwritten.
        recipe: optimiser, schedule, batch size.
        data: the rows.
        seed: LoRA's initial values and, where the recipe shuffles, the rows' order.
        vectors: (Q, d) for the rows' slots; None: the rows' own tokens.
        steps: optimiser steps, if not the recipe's own number.
        tick: told of every step.

    Returns:
        Theta after the last step, (P,); not finite where the training diverged, which then ends.

    Raises:
        UserError: the warm-up keeps the recipe at a learning rate of 0.
    """
    if steps is None:
        recipe.check_rows(len(data.rows))
    total = recipe.total_steps(len(data.rows)) if steps is None else steps
    loop = InnerLoop(model, recipe, total)
    log_rate = torch.tensor(math.log(recipe.learning_rate), device=model.device)
    theta = model.fresh_theta(seed)
    at = Start(theta, initial_state(recipe, theta))
    visits = training_order(len(data.rows), recipe.batch_size, total, recipe.order_seed(seed))
    for rows in visits:
        at, losses = loop.run(at, [data.batch(rows)], log_rate, vectors)
        if tick is not None:
            tick(at.count, total, losses[-1])
        if not (math.isfinite(losses[-1]) or bool(torch.isfinite(at.theta).all())):
            break  # diverged: nothing brings it back
    return at.theta


def visited(data: Rows, recipe: Recipe, steps: int, seed: int) -> tuple[int, int]:
    """How many rows, and tokens of them, such a training sees at least once."""
    order = training_order(len(data.rows), recipe.batch_size, steps, recipe.order_seed(seed))
    seen = {row for batch in order for row in batch}
    return len(seen), sum(len(data.rows[row]) for row in seen)


@dataclass(frozen=True)
class Tuned:
    """A learning rate chosen on validation rows."""

    learning_rate: float
    nll: dict[float, float]
    """Validation NLL at each rate tried."""


def tune_rate(rates: Sequence[float], score: Callable[[float], float]) -> Tuned:
    """The rate with the lowest score (validation NLL); one that diverges has none.

    Raises:
        UserError: all of them diverge.
    """
    nll = {rate: score(rate) for rate in rates}
    kept = {rate: value for rate, value in nll.items() if math.isfinite(value)}
    if not kept:
        raise UserError(
            f"--tune-rates {' '.join(f'{rate:g}' for rate in rates)}: training diverges at every "
            "one of them; give smaller ones."
        )
    return Tuned(min(kept, key=lambda rate: kept[rate]), nll)


def mean_nll(model: LoraModel, theta: Tensor, rows: Sequence[Encoded]) -> float:
    """Response NLL per token over rows at theta."""
    return response_nll(model, theta, list(rows)).mean
