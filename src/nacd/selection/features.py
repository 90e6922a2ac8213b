"""Gradient features of rows, and the shards on disk that they are kept in.

A row's gradient g (P,) of its mean response NLL becomes a direction d, Adam's (`AdamDirection`) or
g itself, and

    feature = S d / |S d|   (k,), float16, with S the sparse `Projection`

so that a product of two features is the cosine. Float16 holds a unit vector's entries to a relative
2^-11, which moves a cosine by about 2^-11 / sqrt(k): thousands of times less than the projection.
A shard's rows go through the model in batches alike in length, which the shard's own rows decide: a
run that is killed goes on from the last whole shard with the same bits.

    manifest.json            all that the features depend on (method, model, projection, checkpoint,
                             rows' digests); written first, and decides whether a run may go on
    rows-000128.safetensors  `features` (<= 128, k) of the rows from 128 on

Every shard carries in its header a hash of what the manifest says (`made_with`), so that a file of
another projection or checkpoint is refused wherever it was put.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacd.data import collate, length_buckets
from nacd.errors import UserError
from nacd.model.lora import LoraModel
from nacd.model.per_row import ROOM, row_gradients
from nacd.model.prepare import Part
from nacd.selection.projection import Projection
from nacd.store.cache import Cache, read_of
from nacd.store.processes import rank, spread

SHARD_ROWS = 128
MANIFEST = "manifest"

Direction = Callable[[Tensor], Tensor]
"""A row's gradient g (P,), which may be overwritten, to the direction d (P,) of its feature."""


def sgd_direction(gradient: Tensor) -> Tensor:
    """The gradient itself."""
    return gradient


class AdamDirection:
    """Where Adam would step on one row: LESS's Gamma (arXiv 2402.04333, and its code).

    Gamma = m' / sqrt(v' + eps),  m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2, without bias
    correction. Two passes over memory less than written out: b1 m and b2 v + eps are kept.

    Args:
        m: first moment of the checkpoint, (P,).
        v: second moment, (P,).
        beta1: b1.
        beta2: b2.
        eps: inside the root.
    """

    def __init__(self, m: Tensor, v: Tensor, beta1: float, beta2: float, eps: float = 1e-8):
        self._m, self._v = beta1 * m, beta2 * v + eps
        self._beta1, self._beta2 = beta1, beta2
        self._root = torch.empty_like(v)

    def __call__(self, gradient: Tensor) -> Tensor:
        """Gamma (P,), in the memory of `gradient` (P,)."""
        torch.addcmul(self._v, gradient, gradient, value=1 - self._beta2, out=self._root)
        return gradient.mul_(1 - self._beta1).add_(self._m).mul_(self._root.rsqrt_())


class FeatureSet:
    """The features of n rows at one checkpoint, on disk.

    Args:
        folder: theirs alone.
        made_with: all that they depend on.
        rows: n.

    Raises:
        UserError: the folder holds features of something else; what differs is named.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any], rows: int):
        self.cache, self.rows = Cache(folder), rows
        self.of = {"made_with": self.cache.belongs(MANIFEST, made_with)}

    def spans(self) -> list[range]:
        """Rows of every shard."""
        return [
            range(first, min(first + SHARD_ROWS, self.rows))
            for first in range(0, self.rows, SHARD_ROWS)
        ]

    def once(self, span: range, make: Callable[[], Tensor]) -> bool:
        """Make the features of a shard, (<= 128, k), unless they are there; whether they were made.

        Raises:
            UserError: they are there, and damaged, or of other features; the file is named.
        """
        made: list[Tensor] = []

        def features() -> dict[str, Tensor]:
            made.append(make())
            return {"features": made[0]}

        self.cache.tensors(_name(span), features, of=self.of)
        return bool(made)

    def read(self) -> Iterator[Tensor]:
        """The shards' features, (<= 128, k) float32, one shard after the other.

        Raises:
            UserError: a shard is damaged, or of other features; it is named.
        """
        for span in self.spans():
            file = self.cache.path / f"{_name(span)}.safetensors"
            yield read_of(file, self.of)[0]["features"].float()


def _name(span: range) -> str:
    return f"rows-{span.start:06d}"


def extract(
    model: LoraModel,
    theta: Tensor,
    direction: Direction,
    projection: Projection,
    part: Part,
    into: FeatureSet,
    batch_size: int,
    row_done: Callable[[], None] = lambda: None,
) -> None:
    """Compute the features of rows and write them, shard by shard; shards that are there are kept.

    Args:
        model: its LoRA is overwritten.
        theta: the checkpoint, (P,).
        direction: from a row's gradient to what is projected.
        projection: S, on the model's device.
        part: the n rows.
        into: where the features go.
        batch_size: most rows that go through the model together.
        row_done: told of every row.

    Raises:
        UserError: a gradient that is not finite (the row is named), or a damaged shard.
    """
    batch_size = max(1, min(batch_size, ROOM // model.size))
    with row_gradients(model) as gradients:

        def features(span: range) -> Tensor:
            rows = [part.rows[i] for i in span]
            projected = torch.empty(len(span), projection.dim).to(theta)
            for where in length_buckets(rows, batch_size, seed=None):
                batch = collate([rows[i] for i in where], model.tokenizer.pad_token_id)
                for i, gradient in zip(where, gradients(theta, batch), strict=True):
                    projected[i] = projection(direction(gradient))
                    row_done()
            norms = projected.norm(dim=1, keepdim=True)
            wrong = [i for i in range(len(span)) if not math.isfinite(float(norms[i]))]
            if wrong:
                raise UserError(
                    f"{part.examples[span[wrong[0]]].source}: the gradient of this row is not "
                    f"finite at the checkpoint for {into.cache.path}; give --dtype float32 or a "
                    "smaller --learning-rate."
                )
            unit = projected / torch.where(norms > 0, norms, torch.ones_like(norms))
            return unit.to(torch.float16)

        def shard(span: range) -> int:
            if not into.once(span, lambda: features(span)):
                for _ in span:
                    row_done()
            return rank()

        spans = into.spans()
        for span, who in zip(spans, spread(spans, shard), strict=True):
            for _ in span if who != rank() else ():
                row_done()
