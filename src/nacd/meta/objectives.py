"""What an inner loop is judged by, as a value and a gradient at theta_N.

- `trajectory` (NACD, arXiv 2504.09818; MTT, arXiv 2203.11932):
  |theta_N - theta*_(t+M)|^2 / |theta*_t - theta*_(t+M)|^2
- `target-loss`: mean response NLL per token on the target rows at theta_N.
- `train-loss`: the same on training rows, others at every outer step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nacd.data.batches import Batch
from nacd.meta import Objective
from nacd.model.lora import LoraModel


def matching(theta: Tensor, start: Tensor, goal: Tensor) -> Tensor:
    """The trajectory matching loss () of theta against the expert's segment, each (P,)."""
    return ((theta - goal) ** 2).sum() / ((start - goal) ** 2).sum()


def trajectory_objective(start: Tensor, goal: Tensor) -> Objective:
    """Distance to the expert's snapshot `goal` (P,), over the segment's own length squared."""
    length = ((start - goal) ** 2).sum()

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        return float(matching(theta, start, goal)), 2 * (theta - goal) / length

    return objective


def target_objective(model: LoraModel, batches: Sequence[Batch]) -> Objective:
    """Mean response NLL per token over all target batches."""
    total = sum(batch.response_tokens for batch in batches)

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        value, gradient = 0.0, torch.zeros_like(theta)
        for batch in batches:
            share = batch.response_tokens / total
            loss, slope, _ = model.value_and_grad(theta, batch)
            value += share * float(loss)
            gradient += share * slope
        return value, gradient

    return objective
