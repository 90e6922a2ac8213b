"""What the outer loop learns: three ways to keep vectors at tokens.

A learner says what is learned (its parameters), which vectors the inner loop trains on, how a
gradient in those becomes one in the parameters, and which tokens, and so which text, it stands for.
The outer loop moves any of them alike and knows none. Nearest (the paper), straight-through and
simplex differ in this:

- `nearest`: the vectors themselves are learned, and projected when they are read out.
- `straight-through` (PEZ, arXiv 2302.03668): the inner loop sees the nearest rows; their gradient
  goes to the vectors unchanged.
- `simplex`: every position is a softmax over candidate tokens at a temperature that falls as
  learning proceeds; read out as the likeliest candidate. The softmax sharpens to one-hot, so that
  no gap between vectors and text is left at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from nacd.distillation.neighbours import Metric, candidates, nearest


class Learner(Protocol):
    """Learned parameters, the vectors they make, and the tokens they stand for."""

    parameters: Tensor
    shared_scale: ClassVar[bool]
    """Whether the parameters share one second moment in Adam: a few signals clear, most noise."""

    def vectors(self, progress: float) -> Tensor:
        """The vectors (Q, d) at a share `progress` of the outer steps."""
        ...

    def pull(self, gradient: Tensor, progress: float) -> Tensor:
        """The gradient in `vectors` (Q, d) as one in `parameters`."""
        ...

    def tokens(self) -> Tensor:
        """Token ids, (Q,)."""
        ...

    def alternatives(self, slot: int, count: int) -> list[int]:
        """Tokens that one place may have instead, at most so many, best first."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """What a state holds beside the parameters."""
        ...

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take that back; a state of an older version may lack it."""
        ...


@dataclass
class Nearest:
    """Free vectors; see the module's docstring."""

    shared_scale: ClassVar[bool] = False

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
        """See `Learner`."""
        return self.parameters

    def pull(self, gradient: Tensor, progress: float) -> Tensor:
        """See `Learner`."""
        return gradient

    def tokens(self) -> Tensor:
        """See `Learner`."""
        return nearest(self.parameters, self.table, self.allowed, self.metric, self.own)

    def alternatives(self, slot: int, count: int) -> list[int]:
        """See `Learner`."""
        vector = self.parameters[slot : slot + 1]
        most = min(count, int(self.allowed.sum()))
        return candidates(vector, self.table, most, self.allowed, self.metric)[0].tolist()

    def kept(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """See `Learner`."""


@dataclass
class StraightThrough(Nearest):
    """Nearest rows forward, identity backward."""

    def vectors(self, progress: float) -> Tensor:
        """See `Learner`."""
        return self.table[self.tokens()].to(self.parameters.dtype)


@dataclass
class Simplex:
    """A softmax over candidates at each position."""

    shared_scale: ClassVar[bool] = True

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
        """See `Learner`."""
        return self._mix((self.parameters / self.temperature(progress)).softmax(1))

    def pull(self, gradient: Tensor, progress: float) -> Tensor:
        """See `Learner`."""
        heat = self.temperature(progress)
        weights = (self.parameters / heat).softmax(1)
        slopes = torch.stack(
            [self.table[c].to(g.dtype) @ g for g, c in zip(gradient, self.candidates, strict=True)]
        )
        return weights * (slopes - (weights * slopes).sum(1, keepdim=True)) / heat

    def tokens(self) -> Tensor:
        """See `Learner`."""
        best = self.parameters.argmax(1, keepdim=True).to(self.candidates.device)
        return self.candidates.gather(1, best)[:, 0]

    def alternatives(self, slot: int, count: int) -> list[int]:
        """See `Learner`."""
        order = self.parameters[slot].argsort(descending=True)[:count].cpu()
        return self.candidates[slot][order].tolist()

    def kept(self) -> dict[str, Tensor]:
        """See `Learner`; the model's guesses among them: rounding may reorder them."""
        return {"candidates": self.candidates}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        self.candidates = kept.get("candidates", self.candidates)


def simplex_logits(candidates: Tensor, starts: Tensor, share: float) -> Tensor:
    """Logits (Q, C) that give the own ids (Q,), column 0 of `candidates`, probability `share`."""
    if not torch.equal(candidates[:, 0], starts.to(candidates.device)):
        raise ValueError("the first candidate of every position must be its own token")
    logits = torch.zeros(candidates.shape)
    logits[:, 0] = math.log(share / (1 - share) * (candidates.shape[1] - 1))
    return logits
