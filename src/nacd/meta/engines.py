"""The two second-order products of one inner step, four ways.

Given the gradient's cotangent v (P,), the adjoint sweep needs

    (d2 l / dP dtheta) v,  (Q, d)      and      (d2 l / dtheta2) v,  (P,)

at (theta_k, batch_k). An engine computes both:

- `exact`: the gradient of <grad_theta l, v> with respect to (P, theta). One double backward;
  attention must have one.
- `first-order`: the central difference (grad l(theta + eps v) - grad l(theta - eps v)) / 2 eps, the
  gradients taken with respect to (P, theta). Two ordinary passes: any attention kernel,
  checkpointing. (Finite differences of gradients: DARTS, arXiv 1806.09055.)
- `one-sided`: (grad l(theta + eps v) - grad l(theta)) / eps, the forward sweep's gradient reused.
- `tesla`: the first product only, the second taken as 0 (TESLA, arXiv 2211.10586): an
  approximation, wrong wherever curvature matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from nacd.data.batches import Batch
from nacd.model.lora import LoraModel, twice_differentiable

EngineName = Literal["exact", "first-order", "one-sided", "tesla"]
PASSES: dict[str, float] = {
    "exact": 4.0,
    "tesla": 3.5,
    "first-order": 3.0,
    "one-sided": 2.0,
    "auto": 3.0,  # not chosen yet: most often a first-order one
}
"""What an inner step with its part of the sweep is worth, in ordinary training steps; roughly its
time too (`benchmarks/metagradient.py`)."""


@dataclass(frozen=True)
class Products:
    """The two second-order products; see the module's docstring."""

    vectors: Tensor
    """(d2 l / dP dtheta) v, (Q, d)."""
    theta: Tensor | None
    """(d2 l / dtheta2) v, (P,); None where the engine leaves it out."""


class Engine(Protocol):
    """Computes the second-order products at one inner step."""

    @property
    def name(self) -> EngineName:
        """What `make_engine` calls it."""
        ...

    @property
    def needs_vector_gradient(self) -> bool:
        """True where the forward sweep must keep the loss's gradient in the vectors."""
        ...

    def __call__(
        self,
        model: LoraModel,
        theta: Tensor,
        batch: Batch,
        vectors: Tensor,
        v: Tensor,
        gradient: tuple[Tensor, Tensor | None],
    ) -> Products:
        """Products at theta (P,) for vectors (Q, d) and cotangent v (P,).

        `gradient` is the loss's gradient there in theta (P,), and in vectors (Q, d) or None.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """Double backward of <grad_theta l, v>."""

    curvature: bool = True
    needs_vector_gradient: bool = False

    @property
    def name(self) -> EngineName:
        """Without curvature it is TESLA's form."""
        return "exact" if self.curvature else "tesla"

    def __call__(
        self,
        model: LoraModel,
        theta: Tensor,
        batch: Batch,
        vectors: Tensor,
        v: Tensor,
        gradient: tuple[Tensor, Tensor | None],
    ) -> Products:
        """See `Engine`."""
        theta = theta.detach().requires_grad_()
        vectors = vectors.detach().requires_grad_()
        wanted = (vectors, theta) if self.curvature else (vectors,)
        labels = int(batch.predicted.sum())

        def run(parts: list[Batch]) -> list[Tensor]:
            sums = [torch.zeros_like(leaf) for leaf in wanted]
            for part in parts:
                loss = model.loss_at(theta, part, vectors, labels=labels)
                (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
                found = torch.autograd.grad(
                    slope @ v, wanted, allow_unused=True, materialize_grads=True
                )
                for own, more in zip(sums, found, strict=True):
                    own += more.detach()
            return sums

        with twice_differentiable(), torch.enable_grad():
            products = model.in_parts(batch, run, backward=2)
        return Products(products[0], products[1] if self.curvature else None)


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
    def needs_vector_gradient(self) -> bool:
        """One-sided reuses the forward sweep's gradient."""
        return not self.central

    def __call__(
        self,
        model: LoraModel,
        theta: Tensor,
        batch: Batch,
        vectors: Tensor,
        v: Tensor,
        gradient: tuple[Tensor, Tensor | None],
    ) -> Products:
        """See `Engine`."""
        length = float(v.norm())
        if length == 0.0:
            return Products(torch.zeros_like(vectors), torch.zeros_like(theta))
        eps = self.eps * float(theta.norm()) / length
        _, up, up_vectors = model.value_and_grad(theta + eps * v, batch, vectors, in_vectors=True)
        if self.central:
            _, down, down_vectors = model.value_and_grad(
                theta - eps * v, batch, vectors, in_vectors=True
            )
            span = 2 * eps
        else:
            down, down_vectors = gradient
            span = eps
        assert up_vectors is not None
        assert down_vectors is not None
        return Products((up_vectors - down_vectors) / span, (up - down) / span)


def make_engine(name: EngineName, eps: float) -> Engine:
    """The engine of that name; `eps` is used by the two first-order ones."""
    if name == "exact":
        return Exact()
    if name == "tesla":
        return Exact(curvature=False)
    return FirstOrder(eps=eps, central=name == "first-order")
