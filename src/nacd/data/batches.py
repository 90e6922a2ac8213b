"""Encoded rows to batches, and the order in which they are visited.

A `Batch` keeps its rows apart and padded. What passes through a model is `packed` wherever the
model allows it: all rows in one sequence, each with positions of its own, and no padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nacd.data.example import Encoded

if TYPE_CHECKING:
    import torch  # takes seconds: loaded by who makes a batch

_CHUNK = 8
"""Batches that are sorted by length together while training: enough to save most of the padding."""


class SoftTargets(NamedTuple):
    """What a teacher expects at the n label tokens of a batch, row after row.

    See `nacd.data.soft_labels`.
    """

    tokens: torch.Tensor
    """(n, k) int64: the likeliest tokens."""
    shares: torch.Tensor
    """(n, k): their probabilities, scaled to sum to 1."""
    weight: float
    """Of them in the loss, 0 to 1; the rows' own tokens have the rest."""

    def to(self, device: torch.device | str) -> SoftTargets:
        """The same on another device."""
        return SoftTargets(self.tokens.to(device), self.shares.to(device), self.weight)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; B rows of T positions."""

    ids: torch.Tensor
    """(B, T) int64: token ids, `pad_id` after each row's end."""
    attention: torch.Tensor
    """(B, T) int64: 1 at a token, 0 at padding."""
    response: torch.Tensor
    """(B, T) bool: True at every token that is a label."""
    slots: torch.Tensor
    """(B, T) int64: index of the learnable vector that stands there, -1 elsewhere."""
    soft: SoftTargets | None = None
    """A teacher's labels; None: the tokens themselves are the labels."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.ids.to(device),
            self.attention.to(device),
            self.response.to(device),
            self.slots.to(device),
            self.soft and self.soft.to(device),
        )

    def row(self, b: int) -> Batch:
        """One row, a batch of its own without padding."""
        return self.rows(b, b + 1)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` - 1, padded to the longest of them."""
        end = int(self.attention[start:stop].sum(1).max())
        tensors = (self.ids, self.attention, self.response, self.slots)
        soft = self.soft
        if soft is not None:
            before, after = (int(self.predicted[:row].sum()) for row in (start, stop))
            soft = SoftTargets(soft.tokens[before:after], soft.shares[before:after], soft.weight)
        return Batch(*(tensor[start:stop, :end] for tensor in tensors), soft=soft)

    def packed(self) -> tuple[Batch, torch.Tensor]:
        """All rows in one sequence, without padding.

        Returns:
            The batch, (1, S), and every token's position in its row, (1, S). No first token of a
            row is a label there: nothing before it predicts it.
        """
        where = self.attention.bool()
        response = self.response.clone()
        response[:, 0] = False
        tensors = (self.ids, self.attention, response, self.slots)
        positions = self.attention.cumsum(1) - 1
        packed = Batch(*(tensor[where][None] for tensor in tensors), soft=self.soft)
        return packed, positions[where][None]

    def parts(self, most: int, *, packed: bool) -> list[Batch]:
        """The rows, in their order, as batches of at most `most` positions, alike in size.

        Args:
            most: positions a part; a longer row is a part alone.
            packed: whether the parts will be packed, so that padding does not count.
        """
        lengths = self.attention.sum(1).tolist()

        def size(start: int, stop: int) -> int:
            own = lengths[start:stop]
            return sum(own) if packed else len(own) * max(own)

        whole = size(0, len(lengths))
        if whole <= most:
            return [self]
        goal = whole / math.ceil(whole / most)
        bounds = [0]
        for b in range(1, len(lengths)):
            if size(bounds[-1], b) >= goal or size(bounds[-1], b + 1) > most:
                bounds.append(b)
        return [self.rows(*span) for span in itertools.pairwise([*bounds, len(lengths)])]

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return int(self.attention.sum())

    @property
    def response_tokens(self) -> int:
        """Number of label tokens."""
        return int(self.response.sum())

    @property
    def predicted(self) -> torch.Tensor:
        """Label tokens of every row that something before them predicts: all but a first, (B,)."""
        return self.response[:, 1:].sum(1)


def collate(
    rows: Sequence[Encoded], pad_id: int, slots: Sequence[Sequence[int]] | None = None
) -> Batch:
    """Pad rows on the right to the longest.

    Args:
        rows: B rows.
        pad_id: the id that fills up.
        slots: for each row, one number a token: the learnable vector there, or -1. None: all -1.

    Raises:
        ValueError: no row, or a row of `slots` is not as long as its row.
    """
    import torch

    if not rows:
        raise ValueError("collate needs at least one row")
    shape = (len(rows), max(len(row) for row in rows))
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention = torch.zeros(shape, dtype=torch.int64)
    response = torch.zeros(shape, dtype=torch.bool)
    places = torch.full(shape, -1, dtype=torch.int64)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row.ids)
        attention[b, : len(row)] = 1
        response[b, : len(row)] = torch.tensor(row.response)
    if slots is not None:
        for b, (row, line) in enumerate(zip(rows, slots, strict=True)):
            if len(line) != len(row):
                raise ValueError(f"row {b} has {len(row)} tokens but {len(line)} slots")
            places[b, : len(row)] = torch.tensor(line, dtype=torch.int64)
    return Batch(ids, attention, response, places)


def length_buckets(
    rows: Sequence[Encoded], batch_size: int, *, seed: int | None
) -> list[list[int]]:
    """Batches of row indices, alike in length; every row once.

    Args:
        rows: the rows.
        batch_size: rows a batch; the last may be smaller.
        seed: None: sorted by length, for evaluation. A number: shuffled, for training: rows are
            shuffled, sorted within chunks of eight batches, and the batches shuffled.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if seed is None:
        return _cut(np.argsort(lengths, kind="stable"), batch_size)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    order = generator.permutation(len(rows))
    chunk = batch_size * _CHUNK
    batches: list[list[int]] = []
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        batches += _cut(part[np.argsort(lengths[part], kind="stable")], batch_size)
    return [batches[i] for i in generator.permutation(len(batches))]


def bucketed(
    rows: Sequence[Encoded], batch_size: int, pad_id: int, device: torch.device | str = "cpu"
) -> list[Batch]:
    """All rows as batches alike in length, for evaluation."""
    return [
        collate([rows[i] for i in where], pad_id).to(device)
        for where in length_buckets(rows, batch_size, seed=None)
    ]


def epoch_order(n: int, batch_size: int, seed: int | None, epoch: int) -> list[list[int]]:
    """Batches of one epoch: a permutation of n rows that (seed, epoch) alone decides.

    The last batch is kept, however small. Without a seed the rows come as they are, every epoch.
    """
    if seed is None:
        return _cut(np.arange(n), batch_size)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
    return _cut(generator.permutation(n), batch_size)


def training_order(rows: int, batch_size: int, steps: int, seed: int | None) -> list[list[int]]:
    """Row indices of every step of a training run: a new seeded shuffle each epoch, or none."""
    order: list[list[int]] = []
    epoch = 0
    while len(order) < steps:
        order += epoch_order(rows, batch_size, seed, epoch)
        epoch += 1
    return order[:steps]


def _cut(order: np.ndarray, batch_size: int) -> list[list[int]]:
    return [
        [int(i) for i in order[start : start + batch_size]]
        for start in range(0, len(order), batch_size)
    ]
