"""Soft labels: what a teacher expects to follow every token of some rows.

One Parquet file, one line a row of T tokens:

    input_ids         (T,)      the row's token ids, by which a student finds it
    target_token_ids  (T, k)    at token j, the k likeliest to come next, the likeliest first
    logprobs          (T, k)    their log-probabilities, in nats
    messages                    of chat rows, the turns

The last three columns are those that Axolotl's distillation plug-in reads
(`axolotl.integrations.kd.chat_template`). The file's metadata says which tokenizer, by a digest of
its vocabulary, and which teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from nacd.data.batches import Batch, SoftTargets
from nacd.data.example import Encoded, Example
from nacd.errors import UserError
from nacd.store.files import whole

FORMAT = "nacd soft labels 1"


@dataclass(frozen=True, eq=False)
class Expected:
    """What a teacher expects after every token of a row."""

    tokens: np.ndarray
    """(T, k) int32: the likeliest next tokens."""
    logs: np.ndarray
    """(T, k) float32: their log-probabilities."""


class SoftLabels:
    """The soft labels of some rows, found by their token ids.

    Args:
        rows: token ids of n rows.
        expected: what the teacher expects in each.
        name: of the file, for error messages.
        of: what tells them from the labels of another teacher; empty: the labels themselves do.
        prompts: whether a student learns from those at the tokens of prompts, too.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        expected: Sequence[Expected],
        name: str = "soft labels",
        of: str = "",
        prompts: bool = True,
    ):
        self.name, self._key, self.prompts = name, of, prompts
        self._of = {tuple(ids): one for ids, one in zip(rows, expected, strict=True)}

    def check(self, rows: Sequence[Encoded], examples: Sequence[Example]) -> None:
        """Refuse rows that have none.

        Args:
            rows: encoded rows.
            examples: what they were encoded from.

        Raises:
            UserError: a row has none; it is named.
        """
        for row, example in zip(rows, examples, strict=True):
            if row.ids not in self._of:
                raise UserError(
                    f"--soft-labels {self.name}: has none for {example.source}, as this model's "
                    "tokenizer and --template write it; run `nacd label` on the same --data, with "
                    "a --model of the same tokenizer, the same --template and --max-tokens."
                )

    @cached_property
    def digest(self) -> str:
        """A hash of the labels, or of what they are of, and of where they count."""
        digest = hashlib.sha256(f"{self._key} {self.prompts}".encode())
        if self._key:
            return digest.hexdigest()[:16]
        for expected in self._of.values():
            digest.update(expected.tokens.tobytes() + expected.logs.tobytes())
        return digest.hexdigest()[:16]

    def attach(self, batch: Batch, weight: float) -> Batch:
        """A batch of rows that have labels here, with them.

        Args:
            batch: B rows.
            weight: of the labels in the loss, 0 to 1.

        Returns:
            The batch; with `prompts`, every token of it is a label.
        """
        if self.prompts:
            batch = replace(batch, response=batch.attention.bool())
        tokens, logs = [], []
        lengths = batch.attention.sum(1).tolist()
        for ids, labels, length in zip(batch.ids, batch.response, lengths, strict=True):
            expected = self._of[tuple(ids[:length].tolist())]
            before = labels[1:length].nonzero()[:, 0].cpu().numpy()  # predicted at the token before
            tokens.append(expected.tokens[before])
            logs.append(expected.logs[before])
        shares = torch.from_numpy(np.concatenate(logs)).softmax(-1)
        soft = SoftTargets(torch.from_numpy(np.concatenate(tokens)).long(), shares, weight)
        return replace(batch, soft=soft)


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of a tokenizer's tokens and their ids."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def write_soft_labels(
    path: Path,
    rows: Sequence[Encoded],
    expected: Sequence[Expected],
    *,
    messages: Sequence[list[dict[str, str]]] | None,
    about: Mapping[str, str],
) -> None:
    """Write soft labels, the file whole or not at all.

    Args:
        path: a .parquet file.
        rows: n rows.
        expected: what the teacher expects in each.
        messages: the turns of each, of chat rows.
        about: what else to say: `vocabulary`, `model`, `adapter`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    logs = [[*one.logs] for one in expected]
    columns: dict[str, Any] = {
        "input_ids": pa.array([list(row.ids) for row in rows], pa.list_(pa.int32())),
        "target_token_ids": pa.array(
            [[*one.tokens] for one in expected], pa.list_(pa.list_(pa.int32()))
        ),
        "logprobs": pa.array(logs, pa.list_(pa.list_(pa.float32()))),
    }
    if messages is not None:
        columns["messages"] = pa.array(list(messages))
    table = pa.table(columns)
    meta = {**(table.schema.metadata or {}), b"nacd": json.dumps({"format": FORMAT, **about})}
    with whole(path) as partial:
        parquet.write_table(table.replace_schema_metadata(meta), partial)


def read_soft_labels(path: Path, tokenizer: Any, prompts: bool = True) -> SoftLabels:
    """Soft labels from a file of `nacd label`.

    Args:
        path: the file.
        tokenizer: the student's.
        prompts: whether it learns from those at the tokens of prompts, too.

    Raises:
        UserError: another kind of file, or the labels of another tokenizer.
    """
    try:
        table = parquet.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"nacd"])
        columns = [table[name] for name in ("input_ids", "target_token_ids", "logprobs")]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"--soft-labels {path}: no whole file of `nacd label` ({type(error).__name__}); run "
            "it again."
        ) from error
    if about.get("vocabulary") != vocabulary_digest(tokenizer):
        raise UserError(
            f"--soft-labels {path}: of another tokenizer, that of {about.get('model')}; soft "
            "labels are token ids, so give a --model of the same tokenizer, or train without them."
        )
    expected, rows = [], []
    for ids, tokens, logs in zip(*columns, strict=True):
        rows.append(ids.as_py())
        expected.append(
            Expected(np.array(tokens.as_py(), np.int32), np.array(logs.as_py(), np.float32))
        )
    return SoftLabels(rows, expected, str(path), prompts=prompts)
