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

from torch import Tensor

from nacd.data.batches import Batch
from nacd.meta.adjoint import Objective, Sweep, sweep
from nacd.meta.engines import FirstOrder, Slopes
from nacd.meta.losses import PlainLoss, UnvisitedLoss, WeightedLoss
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
    weights: list[Tensor] = []

    def gather(i: int, theta: Tensor, v: Tensor, learnables: tuple[Tensor, ...]) -> None:
        weights.append(learnables[0])

    losses = [WeightedLoss(loop.model, batch) for batch in batches]
    found = sweep(loop, start, losses, log_rate, objective, engine, gather, trim=trim)
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
    beside = {
        i: UnvisitedLoss(loop.model, rows, batches[i].response_tokens)
        for i, rows in candidates.items()
    }
    found: dict[int, Tensor] = {}
    central = FirstOrder(eps)

    def gather(i: int, theta: Tensor, v: Tensor, learnables: tuple[Tensor, ...]) -> None:
        if i in beside:
            nothing = Slopes(log_rate, theta, ())
            (found[i],) = central(beside[i], theta, v, nothing).learnables

    losses = [PlainLoss(loop.model, batch) for batch in batches]
    swept = sweep(loop, start, losses, log_rate, objective, engine, gather, trim=trim)
    return swept, found
