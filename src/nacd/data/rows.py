"""Encoded rows, real ones or with learnable slots into one table of vectors P (Q, d).

`Rows` collates batches whose `slots` point into P. Responses stay as they are. With `prompt` every
token wholly inside the last user turn is learned; with `prefix:K`, K extra tokens in front of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nacd.data.batches import Batch, collate, training_order
from nacd.data.example import Encoded
from nacd.data.soft_labels import SoftLabels
from nacd.errors import UserError


def prefix_length(positions: str) -> int:
    """K for `prefix:K`, 0 for `prompt`.

    Raises:
        UserError: neither of the two.
    """
    if positions == "prompt":
        return 0
    head, _, tail = positions.partition(":")
    if head == "prefix" and tail.isdigit() and int(tail) > 0:
        return int(tail)
    raise UserError(
        f"--learn {positions}: give `prompt` (the prompt's own tokens) or `prefix:K` (K tokens in "
        "front of it), for example prefix:8."
    )


@dataclass(frozen=True)
class Rows:
    """Rows that are trained on, all of whose tokens are given or some of which are learned."""

    rows: tuple[Encoded, ...]
    """Token ids, at learnable positions the current text's."""
    pad_id: int
    slots: tuple[tuple[int, ...], ...] = ()
    """For every row, the index into P of each of its tokens, -1 where nothing is learned; empty:
    nothing is, in no row."""
    soft: SoftLabels | None = None
    """A teacher's labels of the rows, in place of their own tokens."""

    @classmethod
    def of(cls, rows: Sequence[Encoded], pad_id: int, soft: SoftLabels | None = None) -> Rows:
        """Rows as they are: nothing in them is learned."""
        return cls(tuple(rows), pad_id, soft=soft)

    @property
    def size(self) -> int:
        """Q, the number of learnable vectors."""
        return sum(slot >= 0 for row in self.slots for slot in row)

    @property
    def ids(self) -> Tensor:
        """Token ids at the slots, (Q,)."""
        return torch.tensor(
            [
                token
                for row, slots in zip(self.rows, self.slots, strict=bool(self.slots))
                for token, slot in zip(row.ids, slots, strict=True)
                if slot >= 0
            ],
            dtype=torch.long,
        )

    def digest(self, vectors: Tensor | None = None) -> str:
        """A hash of what is trained on: ids and labels, and the vectors (Q, d) in the slots."""
        digest = hashlib.sha256(repr([(row.ids, row.response) for row in self.rows]).encode())
        if self.soft is not None:
            digest.update(self.soft.digest.encode())
        if vectors is not None:
            digest.update(repr(self.slots).encode())
            digest.update(vectors.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def with_ids(self, ids: Tensor) -> Rows:
        """The same rows with other token ids (Q,) at the slots."""
        flat = ids.tolist()
        rows = tuple(
            replace(
                row,
                ids=tuple(
                    flat[slot] if slot >= 0 else token
                    for token, slot in zip(row.ids, slots, strict=True)
                ),
            )
            for row, slots in zip(self.rows, self.slots, strict=True)
        )
        return replace(self, rows=rows)

    def row_slices(self) -> list[slice]:
        """For every row, its range of slots in P."""
        slices, start = [], 0
        for slots in self.slots:
            stop = start + sum(slot >= 0 for slot in slots)
            slices.append(slice(start, stop))
            start = stop
        return slices

    def batch(self, indices: Sequence[int]) -> Batch:
        """Collate rows."""
        slots = [self.slots[i] for i in indices] if self.slots else None
        batch = collate([self.rows[i] for i in indices], self.pad_id, slots)
        return batch if self.soft is None else self.soft.attach(batch, 1.0)

    def batches(self, batch_size: int, steps: int, seed: int) -> list[Batch]:
        """The batches of a training run of `steps` steps: seeded shuffles, epoch after epoch."""
        return [self.batch(i) for i in training_order(len(self.rows), batch_size, steps, seed)]


def learnable_rows(rows: Sequence[Encoded], positions: str, pad_id: int) -> Rows:
    """Give rows their learnable slots.

    Args:
        rows: encoded rows.
        positions: `prompt` or `prefix:K`.
        pad_id: padding token id.

    Raises:
        UserError: no row has a learnable position.
    """
    extra = prefix_length(positions)
    new_rows, all_slots, count = [], [], 0
    for row in rows:
        start, stop = row.prompt
        if extra and stop > start:
            own = row.ids[start:stop]  # a prefix starts as a copy of the prompt's first tokens
            added = tuple(own[j % len(own)] for j in range(extra))
            row = Encoded(
                row.ids[:start] + added + row.ids[start:],
                row.response[:start] + (False,) * extra + row.response[start:],
                (start, stop + extra),
            )
            stop = start + extra
        slots = [-1] * len(row.ids)
        for position in range(start, stop):
            slots[position] = count
            count += 1
        new_rows.append(row)
        all_slots.append(tuple(slots))
    if count == 0:
        raise UserError(
            "no row has a token wholly inside its last user turn, so there is nothing to learn; "
            "check the prompts and --template."
        )
    return Rows(tuple(new_rows), pad_id, tuple(all_slots))
