"""The two second-order products of one inner step, four ways.

Given the gradient's cotangent v (P,), the adjoint sweep needs

    (d2 l / dtheta2) v,  (P,)      and      (d2 l / dx dtheta) v

at theta_k, for whatever x is learned beside theta: embeddings, weights of rows. An engine knows
no model, only the loss of one inner step (`StepLoss`), and computes both:

- `exact`: the gradient of <grad_theta l, v> with respect to (x, theta). One double backward;
  attention must have one.
- `first-order`: the central difference (grad l(theta + eps v) - grad l(theta - eps v)) / 2 eps, the
  gradients taken with respect to (x, theta). Two ordinary passes: any attention kernel,
  checkpointing. (Finite differences of gradients: DARTS, arXiv 1806.09055.)
- `one-sided`: (grad l(theta + eps v) - grad l(theta)) / eps, the forward sweep's gradient reused.
  The gradients of a difference are taken in full precision; see `nacd.model.precision`.
- `tesla`: the second product only, the first taken as 0 (TESLA, arXiv 2211.10586): an
  approximation, wrong wherever curvature matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from nacd.model.precision import full_precision

T = TypeVar("T")
EngineName = Literal["exact", "first-order", "one-sided", "tesla"]
PASSES: dict[str, float] = {
    "exact": 4.0,
    "tesla": 3.5,
    "first-order": 3.0,
    "one-sided": 2.0,
}
"""What an inner step with its part of the sweep is worth, in ordinary training steps; roughly its
time too (`benchmarks/metagradient.py`)."""


def likely(name: str, low: bool) -> str:
    """The engine that `auto` takes unless the check finds it wrong.

    Args:
        name: of an engine, or `auto`.
        low: whether the model multiplies in a 16-bit format, whose rounding drowns a difference.
    """
    if name != "auto":
        return name
    return "exact" if low else "first-order"


class Slopes(NamedTuple):
    """A loss and its gradients at one theta."""

    value: Tensor
    """The loss, ()."""
    theta: Tensor
    """Its gradient in theta, (P,)."""
    learnables: tuple[Tensor, ...]
    """Its gradient in each learnable, in their shapes; empty where it was not asked for."""


class Products(NamedTuple):
    """The two second-order products; see the module's docstring."""

    theta: Tensor | None
    """(d2 l / dtheta2) v, (P,); None where the engine leaves it out."""
    learnables: tuple[Tensor, ...]
    """(d2 l / dx dtheta) v for each learnable x, in their shapes."""


class StepLoss(Protocol):
    """The loss of one inner step, as a function of theta (P,) and of what is learned."""

    @property
    def learnables(self) -> tuple[Tensor, ...]:
        """The values x that the loss is taken at."""
        ...

    def slopes(self, theta: Tensor, *, learnables: bool) -> Slopes:
        """The loss and its gradient in theta and, if asked for, in the learnables."""
        ...


Summand = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""(theta, learnables) -> a part of the loss, (), differentiable in both."""


class TwiceDifferentiable(StepLoss, Protocol):
    """A loss that can also be differentiated twice."""

    def in_summands(self, run: Callable[[list[Summand]], T]) -> T:
        """What `run` makes of the parts that the loss is the sum of, one at a time."""
        ...


class Engine(Protocol):
    """Computes the second-order products at one inner step."""

    @property
    def name(self) -> EngineName:
        """What `make_engine` calls it."""
        ...

    @property
    def reuses_slopes(self) -> bool:
        """True where the forward sweep must keep the loss's gradient in the learnables."""
        ...

    def __call__(
        self, loss: TwiceDifferentiable, theta: Tensor, v: Tensor, known: Slopes
    ) -> Products:
        """Products at theta (P,) for the cotangent v (P,).

        `known` is what the forward sweep has kept of the loss there.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """Double backward of <grad_theta l, v>."""

    curvature: bool = True
    reuses_slopes: bool = False

    @property
    def name(self) -> EngineName:
        """Without curvature it is TESLA's form."""
        return "exact" if self.curvature else "tesla"

    def __call__(
        self, loss: TwiceDifferentiable, theta: Tensor, v: Tensor, known: Slopes
    ) -> Products:
        """See `Engine`."""
        theta = theta.detach().requires_grad_()
        learnables = tuple(x.detach().requires_grad_() for x in loss.learnables)
        wanted = (*learnables, theta) if self.curvature else learnables

        def run(parts: list[Summand]) -> list[Tensor]:
            sums = [torch.zeros_like(leaf) for leaf in wanted]
            for part in parts:
                with torch.enable_grad():
                    (slope,) = torch.autograd.grad(
                        part(theta, learnables), theta, create_graph=True
                    )
                    found = torch.autograd.grad(
                        slope @ v, wanted, allow_unused=True, materialize_grads=True
                    )
                for own, more in zip(sums, found, strict=True):
                    own += more.detach()
            return sums

        sums = loss.in_summands(run)
        return Products(sums.pop() if self.curvature else None, tuple(sums))


@dataclass(frozen=True)
class FirstOrder:
    """Finite difference of ordinary gradients along v, central or one-sided."""

    eps: float = 2e-3
    """Step length |eps v| as a share of |theta|."""
    central: bool = True

    @property
    def name(self) -> EngineName:
        """Central or one-sided."""
        return "first-order" if self.central else "one-sided"

    @property
    def reuses_slopes(self) -> bool:
        """One-sided reuses the forward sweep's gradient."""
        return not self.central

    def __call__(self, loss: StepLoss, theta: Tensor, v: Tensor, known: Slopes) -> Products:
        """See `Engine`."""
        length = float(v.norm())
        if length == 0.0:
            zeros = tuple(torch.zeros_like(x) for x in loss.learnables)
            return Products(torch.zeros_like(theta), zeros)
        eps = self.eps * float(theta.norm()) / length
        down, span = known, eps
        with full_precision(theta.device):
            up = loss.slopes(theta + eps * v, learnables=True)
            if self.central:
                down, span = loss.slopes(theta - eps * v, learnables=True), 2 * eps
        pairs = zip(up.learnables, down.learnables, strict=True)
        return Products((up.theta - down.theta) / span, tuple((a - b) / span for a, b in pairs))


def make_engine(name: EngineName, eps: float) -> Engine:
    """The engine of that name; `eps` is used by the two first-order ones."""
    if name == "exact":
        return Exact()
    if name == "tesla":
        return Exact(curvature=False)
    return FirstOrder(eps=eps, central=name == "first-order")
