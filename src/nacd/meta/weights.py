"""What a row is worth to a training: the objective's gradient in the rows' weights.

Give row i of batch k the weight w_i, so that the inner loss is

    l(theta; w) = sum_i w_i s_i(theta) / T        s_i: the row's summed response NLL,
                                                  T: the batch's response tokens

At w = 1, the training as it is, the adjoint sweep's cotangent v_k at that step gives

    dL/dw_i  +=  <grad_theta s_i(theta_k), v_k> / T

a directional derivative: the difference of row losses that the first-order engine's two passes at
theta +- eps v compute anyway. All rows of a training are weighed for the price of one sweep; no
row has its gradient formed. A negative derivative: more of the row lowers the objective.

A row that the training does not visit is weighed in the same way, at weight 0 (`unvisited`): two
forward passes at theta_k +- eps v_k, and no part in the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nacd.data.batches import Batch
from nacd.meta.adjoint import Objective, Sweep, sweep
from nacd.meta.engines import FirstOrder
from nacd.training.inner import InnerLoop, Start


def weight_gradient(
    loop: InnerLoop,
    start: Start,
    batches: Sequence[Batch],
    log_rate: Tensor,
    objective: Objective,
    engine: FirstOrder,
    *,
    trim: float = 0.0,
) -> tuple[Sweep, list[Tensor]]:
    """Gradient of `objective(theta_N)` in the weight of every row of every batch, at weight 1.

    Args:
        loop: model and recipe.
        start: theta_0, its optimiser state and step count; constants.
        batches: the N batches of the inner loop.
        log_rate: logarithm of the peak learning rate, ().
        objective: value and gradient at theta_N.
        engine: eps, and whether the difference is central.
        trim: see `nacd.meta.sweep`.

    Returns:
        The sweep, and for every batch dL/dw, (B,).
    """
    model = loop.model
    before: list[Tensor] = []
    weights: list[Tensor] = []

    def gradient(i: int, theta: Tensor) -> tuple[Tensor, Tensor]:
        rows, slope = model.rows_and_grad(theta, batches[i])
        before.append(rows)
        return rows.sum() / batches[i].response_tokens, slope

    def product(i: int, theta: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        rows, length = before.pop(), float(v.norm())
        if length == 0.0:
            weights.append(torch.zeros_like(rows))
            return torch.zeros_like(theta)
        eps = engine.eps * float(theta.norm()) / length
        up, up_slope = model.rows_and_grad(theta + eps * v, batches[i])
        if engine.central:
            down, down_slope = model.rows_and_grad(theta - eps * v, batches[i])
            span = 2 * eps
        else:
            down, down_slope, span = rows, slope, eps
        weights.append((up - down) / (span * batches[i].response_tokens))
        return (up_slope - down_slope) / span

    found = sweep(loop, start, len(batches), log_rate, objective, gradient, product, trim=trim)
    return found, weights[::-1]


def unvisited(
    loop: InnerLoop,
    start: Start,
    batches: Sequence[Batch],
    log_rate: Tensor,
    objective: Objective,
    engine: FirstOrder,
    candidates: Mapping[int, Sequence[Batch]],
    *,
    eps: float,
    trim: float = 0.0,
) -> tuple[Sweep, dict[int, Tensor]]:
    """Gradient of `objective(theta_N)` in the weight of rows beside the batches, at weight 0.

    Args:
        loop: model and recipe.
        start: theta_0, its optimiser state and step count; constants.
        batches: the N batches of the inner loop.
        log_rate: logarithm of the peak learning rate, ().
        objective: value and gradient at theta_N.
        engine: of the sweep's Hessian-vector products.
        candidates: by inner step, rows that are weighed as if they stood in that step's batch.
        eps: distance of theta at which they are weighed, as a share of |theta|; always central.
        trim: see `nacd.meta.sweep`.

    Returns:
        The sweep, and for every step of `candidates` dL/dw of its rows, (n,), batch after batch.
    """
    model = loop.model
    found: dict[int, Tensor] = {}

    def gradient(i: int, theta: Tensor) -> tuple[Tensor, Tensor]:
        return model.value_and_grad(theta, batches[i])[:2]

    def product(i: int, theta: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        length = float(v.norm())
        if i in candidates:
            step = 0.0 if length == 0.0 else eps * float(theta.norm()) / length
            sums = [
                [model.row_nll(theta + sign * step * v, batch)[0] for batch in candidates[i]]
                for sign in (1, -1)
            ]
            up, down = (torch.cat(rows) for rows in sums)
            span = 2 * step * batches[i].response_tokens
            found[i] = (up - down) / span if step else torch.zeros_like(up)
        if length == 0.0:
            return torch.zeros_like(theta)
        step = engine.eps * float(theta.norm()) / length
        up = model.value_and_grad(theta + step * v, batches[i])[1]
        if not engine.central:
            return (up - slope) / step
        return (up - model.value_and_grad(theta - step * v, batches[i])[1]) / (2 * step)

    swept = sweep(loop, start, len(batches), log_rate, objective, gradient, product, trim=trim)
    return swept, found
