"""The loss of one inner step on a LoRA model, with embeddings or weights of rows beside theta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from nacd.data.batches import Batch
from nacd.meta.engines import Slopes, Summand
from nacd.model.lora import LoraModel, twice_differentiable

T = TypeVar("T")


@dataclass
class EmbeddingLoss:
    """The mean response NLL of a batch whose slots point into learnable embeddings.

    Its one learnable are the embeddings of the batch's own slots, (n, d).
    """

    model: LoraModel
    batch: Batch
    vectors: Tensor
    """All learnable embeddings, (Q, d)."""

    @cached_property
    def own(self) -> Tensor:
        """The slots that the batch has, ascending, (n,)."""
        slots = self.batch.slots
        return slots[slots >= 0].unique().to(self.vectors.device)

    @property
    def learnables(self) -> tuple[Tensor, ...]:
        """See `nacd.meta.engines.StepLoss`."""
        return (self.vectors[self.own],)

    def slopes(self, theta: Tensor, *, learnables: bool) -> Slopes:
        """See `nacd.meta.engines.StepLoss`."""
        value, slope, other = self.model.value_and_grad(
            theta, self.batch, self.vectors, in_vectors=learnables
        )
        return Slopes(value, slope, () if other is None else (other[self.own],))

    def in_summands(self, run: Callable[[list[Summand]], T]) -> T:
        """See `nacd.meta.engines.TwiceDifferentiable`."""
        labels = int(self.batch.predicted.sum())

        def summand(part: Batch) -> Summand:
            def loss(theta: Tensor, learnables: tuple[Tensor, ...]) -> Tensor:
                vectors = self.vectors.index_copy(0, self.own, learnables[0])
                return self.model.loss_at(theta, part, vectors, labels=labels)

            return loss

        with twice_differentiable():
            return self.model.in_parts(
                self.batch, lambda parts: run([*map(summand, parts)]), backward=2
            )


@dataclass(frozen=True)
class PlainLoss:
    """The mean response NLL of a batch; nothing is learned beside theta."""

    model: LoraModel
    batch: Batch
    learnables: tuple[Tensor, ...] = ()

    def slopes(self, theta: Tensor, *, learnables: bool) -> Slopes:
        """See `nacd.meta.engines.StepLoss`."""
        return Slopes(*self.model.value_and_grad(theta, self.batch)[:2], ())


@dataclass(frozen=True)
class WeightedLoss:
    """sum_i w_i s_i / T at w = 1; see `nacd.meta.weights`. Its one learnable is w, (B,)."""

    model: LoraModel
    batch: Batch

    @property
    def learnables(self) -> tuple[Tensor, ...]:
        """See `nacd.meta.engines.StepLoss`."""
        return (torch.ones(len(self.batch.ids), device=self.model.device),)

    def slopes(self, theta: Tensor, *, learnables: bool) -> Slopes:
        """See `nacd.meta.engines.StepLoss`."""
        rows, slope = self.model.rows_and_grad(theta, self.batch)
        rows = rows / self.batch.response_tokens
        return Slopes(rows.sum(), slope, (rows,))


@dataclass(frozen=True)
class UnvisitedLoss:
    """The same of rows at w = 0: they add nothing to the loss, nor to its gradient in theta."""

    model: LoraModel
    batches: Sequence[Batch]
    tokens: int
    """T of the batch that they are weighed beside."""

    @property
    def learnables(self) -> tuple[Tensor, ...]:
        """See `nacd.meta.engines.StepLoss`."""
        return (torch.zeros(sum(len(b.ids) for b in self.batches), device=self.model.device),)

    def slopes(self, theta: Tensor, *, learnables: bool) -> Slopes:
        """See `nacd.meta.engines.StepLoss`; two of these are forward passes alone."""
        rows = torch.cat([self.model.row_nll(theta, batch)[0] for batch in self.batches])
        return Slopes(rows.new_zeros(()), torch.zeros_like(theta), (rows / self.tokens,))
