"""Three ways to keep learned vectors at tokens: nearest (the paper), straight-through, simplex.

Each is a map from learned parameters to the vectors that the inner loop trains on, the pull-back of
a gradient through it, and the token ids it stands for.

- `nearest`: the vectors themselves are learned, and projected when they are read out.
- `straight-through` (PEZ, arXiv 2302.03668): the inner loop sees the nearest rows; their gradient
  goes to the vectors unchanged.
- `simplex`: every position is a softmax over candidate tokens at a temperature that falls as
  learning proceeds; read out as the likeliest candidate. The softmax sharpens to one-hot, so that
  no gap between vectors and text is left at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from nacd.distillation.neighbours import Metric, nearest

ProjectionName = Literal["nearest", "straight-through", "simplex"]


class Projection(Protocol):
    """Learned parameters, the vectors they make, and the tokens they stand for."""

    parameters: Tensor

    def vectors(self, progress: float) -> Tensor:
        """The vectors (Q, d) at a share `progress` of the outer steps."""
        ...

    def pull(self, gradient: Tensor, progress: float) -> Tensor:
        """The gradient in `vectors` (Q, d) as one in `parameters`."""
        ...

    def tokens(self) -> Tensor:
        """Token ids, (Q,)."""
        ...


@dataclass
class Nearest:
    """Free vectors; see the module's docstring."""

    parameters: Tensor
    """(Q, d)."""
    table: Tensor
    """(V, d)."""
    allowed: Tensor
    """(V,) bool: ids that may be chosen."""
    metric: Metric = "euclidean"
    own: Tensor | None = None
    """(Q,) ids that may be chosen at their own place too: the starting rows'."""

    def vectors(self, progress: float) -> Tensor:
        """See `Projection`."""
        return self.parameters

    def pull(self, gradient: Tensor, progress: float) -> Tensor:
        """See `Projection`."""
        return gradient

    def tokens(self) -> Tensor:
        """See `Projection`."""
        return nearest(self.parameters, self.table, self.allowed, self.metric, self.own)


@dataclass
class StraightThrough(Nearest):
    """Nearest rows forward, identity backward."""

    def vectors(self, progress: float) -> Tensor:
        """See `Projection`."""
        return self.table[self.tokens()].to(self.parameters.dtype)


@dataclass
class Simplex:
    """A softmax over candidates at each position."""

    parameters: Tensor
    """Logits, (Q, C)."""
    candidates: Tensor
    """Candidate token ids, (Q, C), on the CPU."""
    table: Tensor
    """(V, d)."""
    hot: float = 1.0
    """Temperature at the start."""
    cold: float = 0.05
    """Temperature at the end; geometric in between."""

    def temperature(self, progress: float) -> float:
        """The softmax's temperature."""
        return self.hot * (self.cold / self.hot) ** min(1.0, max(0.0, progress))

    def _mix(self, weights: Tensor) -> Tensor:
        return torch.stack(
            [w @ self.table[c].to(w.dtype) for w, c in zip(weights, self.candidates, strict=True)]
        )

    def vectors(self, progress: float) -> Tensor:
        """See `Projection`."""
        return self._mix((self.parameters / self.temperature(progress)).softmax(1))

    def pull(self, gradient: Tensor, progress: float) -> Tensor:
        """See `Projection`."""
        heat = self.temperature(progress)
        weights = (self.parameters / heat).softmax(1)
        slopes = torch.stack(
            [self.table[c].to(g.dtype) @ g for g, c in zip(gradient, self.candidates, strict=True)]
        )
        return weights * (slopes - (weights * slopes).sum(1, keepdim=True)) / heat

    def tokens(self) -> Tensor:
        """See `Projection`."""
        best = self.parameters.argmax(1, keepdim=True).to(self.candidates.device)
        return self.candidates.gather(1, best)[:, 0]


def simplex_logits(candidates: Tensor, seeds: Tensor, share: float) -> Tensor:
    """Logits (Q, C) that give each seed id (Q,), column 0 of `candidates`, probability `share`."""
    if not torch.equal(candidates[:, 0], seeds.to(candidates.device)):
        raise ValueError("the first candidate of every position must be its seed")
    logits = torch.zeros(candidates.shape)
    logits[:, 0] = math.log(share / (1 - share) * (candidates.shape[1] - 1))
    return logits
