"""The inner loop: LoRA trained on batches, step by step, from a start that a training left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data.batches import Batch
from nacd.model.lora import LoraModel
from nacd.training.update import State, step


@dataclass(frozen=True)
class Start:
    """Where an inner loop starts."""

    theta: Tensor
    """(P,)."""
    state: State
    """The optimiser's state; see `nacd.training.update`."""
    count: int = 0
    """Optimiser steps already taken (schedule and bias correction go on from here)."""


@dataclass(frozen=True)
class InnerLoop:
    """What an inner loop is made of, beside where it starts and what it trains on."""

    model: LoraModel
    recipe: Recipe
    total: int
    """Steps of the whole recipe, over which its schedule runs."""

    def rate(self, log_rate: Tensor, k: int) -> Tensor:
        """Learning rate of the recipe's step k, ()."""
        return log_rate.exp() * self.recipe.rate(k, self.total)

    def run(
        self, start: Start, batches: Sequence[Batch], log_rate: Tensor, vectors: Tensor | None
    ) -> tuple[Start, list[float]]:
        """Train on `batches` from `start`, keeping nothing; where it ends, and the losses."""
        theta, state, losses = start.theta, start.state, []
        for k, batch in enumerate(batches, start.count):
            loss, gradient, _ = self.model.value_and_grad(theta, batch, vectors)
            theta, state = step(self.recipe, theta, state, gradient, self.rate(log_rate, k), k)
            losses.append(float(loss))
        return Start(theta, state, start.count + len(batches)), losses
