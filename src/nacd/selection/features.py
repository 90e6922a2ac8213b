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

Every shard carries in its header the manifest's SHA-256 (`made_with`), so that a file of another
projection or checkpoint is refused wherever it was put.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from nacd.store.files import read_tensors, write_json, write_tensors
from nacd.store.processes import first, rank, spread
from nacd.store.run import flatten

SHARD_ROWS = 128
MANIFEST = "manifest.json"

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


# --- sealed files -----------------------------------------------------------------------------


def claim(folder: Path, made_with: Mapping[str, Any]) -> str:
    """Make `folder` for what is described by `made_with`, or check that it is that already.

    Returns:
        The key, a SHA-256 of `made_with`, that the folder's files are sealed with.

    Raises:
        UserError: the folder was made with something else; every differing key is named.
    """
    return first(lambda: _claim(folder, json.dumps(made_with, sort_keys=True)))


def _claim(folder: Path, text: str) -> str:
    here = json.loads(text)
    path = folder / MANIFEST
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            flat, now = flatten(there), flatten(here)
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); delete the folder {folder} and run the same command "
                "again."
            ) from error
        differing = [k for k in sorted(flat.keys() | now.keys()) if flat.get(k) != now.get(k)]
        if differing:
            named = [key for key in differing if not key.endswith("sha256")] or differing
            lines = [f"{k}: {_short(flat.get(k))} there, {_short(now.get(k))} now" for k in named]
            raise UserError(
                f"{path}: what lies beside it was made with something else, and is not to be mixed "
                f"({'; '.join(lines)}). Give the same flags as then, or another --out, or delete "
                f"the folder {folder} to make it anew."
            )
    else:
        write_json(path, here)
    for partial in folder.glob(".*.partial-*"):  # of a process that was killed
        partial.unlink(missing_ok=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} of hash {hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]}"
    return repr(value)


def write_sealed(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write a safetensors file whole, with the key of its folder."""
    write_tensors(path, tensors, {"made_with": key})


def read_sealed(path: Path, key: str) -> dict[str, Tensor]:
    """Read a file that `write_sealed` wrote with the same key; tensors on the CPU.

    Raises:
        UserError: the file is damaged, or belongs to another folder; it is named.
    """
    tensors, header = read_tensors(path)
    if header.get("made_with") != key:
        raise UserError(
            f"{path}: made with another projection, checkpoint or rows than {MANIFEST} beside it "
            "says, and not to be mixed with the others; delete it, and run the same command again "
            "to re-make it."
        )
    return tensors


# --- features ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureSet:
    """The features of n rows at one checkpoint, on disk."""

    folder: Path
    key: str
    """As `claim` returns it."""
    rows: int
    """n."""

    def spans(self) -> list[range]:
        """Rows of every shard."""
        return [
            range(first, min(first + SHARD_ROWS, self.rows))
            for first in range(0, self.rows, SHARD_ROWS)
        ]

    def path(self, span: range) -> Path:
        """File of a shard."""
        return self.folder / f"rows-{span.start:06d}.safetensors"

    def read(self) -> Iterator[Tensor]:
        """The shards' features, (<= 128, k) float32, one shard after the other.

        Raises:
            UserError: a shard is damaged, or of other features; it is named.
        """
        for span in self.spans():
            yield read_sealed(self.path(span), self.key)["features"].float()


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

        def shard(span: range) -> int:
            path = into.path(span)
            if path.is_file():
                read_sealed(path, into.key)
                for _ in span:
                    row_done()
                return rank()
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
                    f"finite at the checkpoint for {into.folder}; give --dtype float32 or a "
                    "smaller --learning-rate."
                )
            unit = projected / torch.where(norms > 0, norms, torch.ones_like(norms))
            write_sealed(path, {"features": unit.to(torch.float16)}, into.key)
            return rank()

        spans = into.spans()
        for span, who in zip(spans, spread(spans, shard), strict=True):
            for _ in span if who != rank() else ():
                row_done()
