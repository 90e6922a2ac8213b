"""The inner loop and the adjoint sweep: the gradient of what training leads to.

    inner loop    (theta, s)_(k+1) = U(theta_k, s_k, g_k, exp(log_lr) * schedule(k))
                  g_k = grad_theta l(theta_k; P_batch(k)),  k = start .. start + N - 1
    sweep         lambda_N = dL/dtheta_N, mu_N = 0, and back:
                  (theta-part, mu_k, v, log-lr-part) = VJP of U with (lambda_(k+1), mu_(k+1))
                  dL/dP      += (d2 l / dP dtheta) v
                  lambda_k    = theta-part + (d2 l / dtheta2) v
                  dL/dlog_lr += log-lr-part

The memory of the model's graph is one step's, whatever N is. Of the trajectory only the gradients
g_k are kept, and on the way back (theta, s) at log2(N) steps or fewer: states between are made
again from the gradients, without the model, about N log2(N) / 2 updates in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data.batches import Batch
from nacd.meta.engines import Engine
from nacd.model.lora import LoraModel, twice_differentiable
from nacd.training.update import State, step, step_vjp

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""theta_N (P,) -> the objective's value and its gradient (P,)."""


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


Gradient = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(inner step i, theta_i) -> the loss () and its gradient in theta (P,)."""
Product = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""(inner step i, theta_i, g_i, v) -> (d2 l / dtheta2) v, (P,), or None where it is left out.

Called from the last step to the first; what else the cotangent v tells, the caller gathers in it.
"""


def sweep(
    loop: InnerLoop,
    start: Start,
    steps: int,
    log_rate: Tensor,
    objective: Objective,
    gradient: Gradient,
    product: Product,
    *,
    trim: float = 0.0,
) -> Sweep:
    """Train for `steps` inner steps, then carry the objective's cotangent back through them.

    Args:
        loop: model and recipe.
        start: theta_0, its optimiser state and step count; constants.
        steps: N.
        log_rate: logarithm of the peak learning rate, ().
        objective: value and gradient at theta_N.
        gradient: the inner loss and its gradient at a step.
        product: the Hessian-vector product at a step.
        trim: share of each step's gradient cotangents v, the largest, that are clamped; see
            `clamp_largest`. 0 leaves the gradient exact.
    """
    gradients: list[Tensor] = []
    losses: list[float] = []
    theta, state = start.theta, start.state

    def advance(theta: Tensor, state: State, i: int) -> tuple[Tensor, State]:
        k = start.count + i
        return step(loop.recipe, theta, state, gradients[i], loop.rate(log_rate, k), k)

    with torch.no_grad():
        for i in range(steps):
            loss, slope = gradient(i, theta)
            gradients.append(slope)
            losses.append(float(loss))
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
            slope = gradients.pop()
            parts = step_vjp(
                loop.recipe,
                theta,
                state,
                slope,
                log_rate,
                loop.recipe.rate(k, loop.total),
                k,
                cotangent,
                cotangent_state,
            )
            curvature = product(i, theta, slope, clamp_largest(parts.gradient, trim))
            d_log_rate += parts.log_rate
            cotangent = parts.theta if curvature is None else parts.theta + curvature
            cotangent_state = parts.state
            norms.append(float(cotangent.norm()))
    return Sweep(value, d_log_rate, cotangent, end, losses, norms)


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
    """
    d_vectors = torch.zeros_like(vectors)
    in_vectors: list[tuple[Tensor, Tensor] | None] = []
    """Of every step, the slots that its batch has (n,) and the gradient there (n, d)."""

    def gradient(i: int, theta: Tensor) -> tuple[Tensor, Tensor]:
        loss, slope, other = loop.model.value_and_grad(
            theta, batches[i], vectors, in_vectors=engine.needs_vector_gradient
        )
        slots = batches[i].slots
        own = slots[slots >= 0].unique().to(vectors.device)
        in_vectors.append(None if other is None else (own, other[own]))
        return loss, slope

    def product(i: int, theta: Tensor, slope: Tensor, v: Tensor) -> Tensor | None:
        known, other = in_vectors.pop(), None
        if known is not None:
            other = torch.zeros_like(vectors).index_copy_(0, *known)
        found = engine(loop.model, theta, batches[i], vectors, v, (slope, other))
        d_vectors.add_(found.vectors)
        return found.theta

    found = sweep(loop, start, len(batches), log_rate, objective, gradient, product, trim=trim)
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
