"""Learned prompt vectors on disk: one safetensors file that says whose they are.

    vectors   (Q, d)   the learned embeddings, as `inputs_embeds` takes them
    slots     (S,)     every row's slots, row after row: a vector's index, or -1 for a fixed token
    offsets   (n + 1,) row i's slots are `slots[offsets[i] : offsets[i + 1]]`

The header holds the digest of every row's seed, and what else the writer puts there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nacd.errors import UserError
from nacd.store.files import read_tensors, write_tensors

FORMAT = "nacd soft prompts 1"


@dataclass(frozen=True, eq=False)
class SoftPrompts:
    """Learned vectors, and where they stand."""

    vectors: Tensor
    """(Q, d)."""
    rows: list[list[int]]
    """For each row, one number a token: the vector there, or -1."""
    seeds: list[str]
    """`Example.digest` of each row's starting row."""
    metadata: dict[str, str]
    """What else was said of them: the model, the template."""


def write_soft_prompts(
    path: Path,
    vectors: Tensor,
    rows: Sequence[Sequence[int]],
    seeds: Sequence[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write learned vectors, the file whole or not at all.

    Args:
        path: a .safetensors file.
        vectors: (Q, d).
        rows: for each of n rows, one number a token: the index of the vector there, or -1.
        seeds: the n starting rows' digests.
        metadata: more for the header; `model` should name the model they were learned on.

    Raises:
        ValueError: a slot that has no vector, or not one starting row a row.
        UserError: the disk is full.
    """
    if len(rows) != len(seeds):
        raise ValueError(f"{len(rows)} rows but {len(seeds)} starting rows")
    slots = torch.tensor([slot for row in rows for slot in row], dtype=torch.int64)
    if len(slots) and not -1 <= int(slots.min()) <= int(slots.max()) < len(vectors):
        raise ValueError(f"slots run from {slots.min()} to {slots.max()}; {len(vectors)} vectors")
    lengths = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64)
    write_tensors(
        path,
        {"vectors": vectors, "slots": slots, "offsets": lengths.cumsum(0)},
        {**(metadata or {}), "format": FORMAT, "seeds": json.dumps(list(seeds))},
    )


def read_soft_prompts(path: Path) -> SoftPrompts:
    """Read what `write_soft_prompts` wrote.

    Raises:
        UserError: no such file, a damaged one, or one of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the soft prompts that a run wrote.")
    tensors, header = read_tensors(path, renamed=True)
    metadata = dict(header)
    found = metadata.pop("format", None)
    if found != FORMAT:
        raise UserError(
            f"{path}: not soft prompts (its header says {found!r}, expected {FORMAT!r}); give the "
            "soft_prompts.safetensors of a run folder."
        )
    offsets, slots = tensors["offsets"].tolist(), tensors["slots"].tolist()
    rows = [slots[a:b] for a, b in itertools.pairwise(offsets)]
    return SoftPrompts(tensors["vectors"], rows, json.loads(metadata.pop("seeds")), metadata)
