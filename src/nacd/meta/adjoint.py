"""The inner loop and the adjoint sweep: the gradient of what training leads to.

    inner loop    (theta, s)_(k+1) = U(theta_k, s_k, g_k, exp(log_lr) * schedule(k))
                  g_k = grad_theta l(theta_k; P_batch(k)),  k = start .. start + N - 1
    sweep         lambda_N = dL/dtheta_N, mu_N = 0, and back:
                  (theta-part, mu_k, v, log-lr-part) = VJP of U with (lambda_(k+1), mu_(k+1))
                  dL/dP      += (d2 l / dP dtheta) v
                  lambda_k    = theta-part + (d2 l / dtheta2) v
                  dL/dlog_lr += log-lr-part

The memory of the model's graph is one step's, whatever N is. Of the trajectory only the gradients
g_k are kept (`nacd.meta.shelf`), and on the way back (theta, s) at log2(N) steps or fewer: states
between are made again from the gradients, without the model, about N log2(N) / 2 updates in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nacd.data.batches import Batch
from nacd.meta.engines import Engine, Products, Slopes, StepLoss
from nacd.meta.losses import EmbeddingLoss
from nacd.meta.shelf import Shelf
from nacd.model.lora import twice_differentiable
from nacd.model.precision import full_precision
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import State, step, step_vjp

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""theta_N (P,) -> the objective's value and its gradient (P,)."""


@dataclass
class Sweep:
    """The objective after an inner loop, and its gradient in what every inner loop has."""

    value: float
    """The objective at theta_N."""
    log_rate: Tensor
    """dL/dlog_lr, ()."""
    theta: Tensor
    """lambda_0 = dL/dtheta_0, (P,)."""
    end: Tensor
    """theta_N, (P,)."""
    losses: list[float] = field(default_factory=list)
    """The inner losses l(theta_k; P_batch(k))."""
    cotangent_norms: list[float] = field(default_factory=list)
    """|lambda_N|, ..., |lambda_0|: an exploding one means that no engine is right there."""


@dataclass
class MetaGradient(Sweep):
    """The same, with the gradient in the learnable vectors."""

    vectors: Tensor = field(kw_only=True)
    """dL/dP, (Q, d)."""


L = TypeVar("L", bound=StepLoss)
Taken = TypeVar("Taken", bound=StepLoss, contravariant=True)


class Gather(Protocol):
    """Takes what a step of the sweep back tells beside the cotangent, last step first."""

    def __call__(self, i: int, theta: Tensor, v: Tensor, learnables: tuple[Tensor, ...]) -> None:
        """(d2 l / dx dtheta) v of inner step i at theta (P,), v (P,), for each learnable x."""
        ...


class Sweeper(Protocol[Taken]):
    """An engine for a kind of loss; see `nacd.meta.engines.Engine`."""

    @property
    def reuses_slopes(self) -> bool:
        """Whether the loss's gradient in the learnables is to be kept."""
        ...

    def __call__(self, loss: Taken, theta: Tensor, v: Tensor, known: Slopes) -> Products:
        """The products at theta (P,) for the cotangent v (P,)."""
        ...


def sweep(
    loop: InnerLoop,
    start: Start,
    losses: Sequence[L],
    log_rate: Tensor,
    objective: Objective,
    engine: Sweeper[L],
    gather: Gather,
    *,
    trim: float = 0.0,
    away: bool | None = None,
) -> Sweep:
    """Train on the inner losses in turn, then carry the objective's cotangent back through them.

    Args:
        loop: model and recipe.
        start: theta_0, its optimiser state and step count; constants.
        losses: those of the N inner steps.
        log_rate: logarithm of the peak learning rate, ().
        objective: value and gradient at theta_N.
        engine: how the second-order products are computed.
        gather: takes those in what is learned.
        trim: share of each step's gradient cotangents v, the largest, that are clamped; see
            `clamp_largest`. 0 leaves the gradient exact.
        away: whether the steps' gradients are kept off the device; see `nacd.meta.shelf.Shelf`.
    """
    kept_slopes = Shelf(len(losses), away)
    values: list[float] = []
    steps = len(losses)
    theta, state = start.theta, start.state

    def advance(theta: Tensor, state: State, i: int) -> tuple[Tensor, State]:
        k = start.count + i
        return step(loop.recipe, theta, state, kept_slopes[i].theta, loop.rate(log_rate, k), k)

    with torch.no_grad():
        for i in range(steps):
            # the one-sided difference subtracts this gradient
            with full_precision(theta.device) if engine.reuses_slopes else nullcontext():
                found = losses[i].slopes(theta, learnables=engine.reuses_slopes)
            kept_slopes.put(found)
            values.append(float(found.value))
            theta, state = advance(theta, state, i)
        end = theta
        value, cotangent = objective(end)
        cotangent_state: State = tuple(torch.zeros_like(s) for s in state)
        d_log_rate = torch.zeros_like(log_rate)
        norms = [float(cotangent.norm())]
        kept = [(0, start.theta, start.state)]
        for i in reversed(range(steps)):
            at, theta, state = kept[-1]
            while at < i:  # replay the updates up to i, keeping where half of the way is done
                half = (at + i + 1) // 2
                for j in range(at, half):
                    theta, state = advance(theta, state, j)
                at = half
                kept.append((at, theta, state))
            kept.pop()
            k = start.count + i
            known = kept_slopes.pop()
            parts = step_vjp(
                loop.recipe,
                theta,
                state,
                known.theta,
                log_rate,
                loop.recipe.rate(k, loop.total),
                k,
                cotangent,
                cotangent_state,
            )
            v = clamp_largest(parts.gradient, trim)
            curvature, learnables = engine(losses[i], theta, v, known)
            gather(i, theta, v, learnables)
            d_log_rate += parts.log_rate
            cotangent = parts.theta if curvature is None else parts.theta + curvature
            cotangent_state = parts.state
            norms.append(float(cotangent.norm()))
    return Sweep(value, d_log_rate, cotangent, end, values, norms)


def meta_gradient(
    loop: InnerLoop,
    start: Start,
    batches: Sequence[Batch],
    log_rate: Tensor,
    vectors: Tensor,
    objective: Objective,
    engine: Engine,
    *,
    trim: float = 0.0,
    away: bool | None = None,
) -> MetaGradient:
    """Gradient of `objective(theta_N)` in the vectors and the log learning rate, by adjoint sweep.

    Args:
        loop: model and recipe.
        start: theta_0, its optimiser state and step count; constants.
        batches: the N batches of the inner loop, their slots pointing into `vectors`.
        log_rate: logarithm of the peak learning rate, ().
        vectors: learnable embeddings P, (Q, d).
        objective: value and gradient at theta_N.
        engine: how the second-order products are computed.
        trim: see `sweep`.
        away: see `sweep`.
    """
    d_vectors = torch.zeros_like(vectors)
    losses = [EmbeddingLoss(loop.model, batch, vectors) for batch in batches]

    def gather(i: int, theta: Tensor, v: Tensor, learnables: tuple[Tensor, ...]) -> None:
        d_vectors.index_add_(0, losses[i].own, learnables[0])

    found = sweep(loop, start, losses, log_rate, objective, engine, gather, trim=trim, away=away)
    return MetaGradient(**vars(found), vectors=d_vectors)


def clamp_largest(v: Tensor, share: float) -> Tensor:
    """Clamp the largest entries of v (P,), a `share` of them, to the largest of the others.

    AdamW divides by the root of its second moment: where an entry's gradients have all been tiny
    (LoRA's A just after B = 0), the step's derivative is of the order of rate / epsilon, and a few
    such entries drown the rest of v although the step saturates at once. The result is a biased
    gradient that such entries cannot blow up.
    """
    if share <= 0:
        return v
    size = v.abs()
    kept = max(1, round((1 - share) * len(v)))
    limit = size.kthvalue(kept).values
    return v.clamp(-limit, limit)


def unrolled_meta_gradient(
    loop: InnerLoop,
    start: Start,
    batches: Sequence[Batch],
    log_rate: Tensor,
    vectors: Tensor,
    objective: Callable[[Tensor], Tensor],
) -> MetaGradient:
    """The same gradient by one autograd graph over all N steps: the oracle, and the memory hog.

    `objective` is a differentiable function of theta_N here.
    """
    leaf_theta = start.theta.detach().requires_grad_()
    leaf_rate = log_rate.detach().requires_grad_()
    leaf_vectors = vectors.detach().requires_grad_()
    theta, state, losses = leaf_theta, start.state, []
    with twice_differentiable(), torch.enable_grad():
        for k, batch in enumerate(batches, start.count):
            loss = loop.model.loss_at(theta, batch, leaf_vectors)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta, state = step(loop.recipe, theta, state, gradient, loop.rate(leaf_rate, k), k)
            losses.append(float(loss.detach()))
        value = objective(theta)
        d_vectors, d_rate, d_theta = torch.autograd.grad(
            value,
            (leaf_vectors, leaf_rate, leaf_theta),
            allow_unused=True,
            materialize_grads=True,
        )
    return MetaGradient(
        float(value.detach()), d_rate, d_theta, theta.detach(), losses, vectors=d_vectors
    )
