"""A file's rows, as text and as token ids, in memory that does not grow with their length.

A million rows as Python objects take six gigabytes. Here a row is a record of a temporary file
(`nacd.store.spool`), made an `Example` or an `Encoded` when it is looked at; of every row the
memory holds its digest, and of every encoded row its numbers of tokens and labels.
"""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from nacd.data.example import Encoded, Example, Message
from nacd.store.spool import Spooled


class Examples(Spooled[Example]):
    """Rows as text."""

    def __init__(self) -> None:
        super().__init__()
        self._digests = bytearray()

    def _pack(self, value: Example) -> bytes:
        self._digests += bytes.fromhex(value.digest)
        return marshal.dumps(
            (
                tuple((m.role, m.content, m.train) for m in value.messages),
                value.source,
                value.choices,
                value.answer,
                value.verbatim,
                value.group,
            )
        )

    def _unpack(self, record: bytes) -> Example:
        messages, *rest = marshal.loads(record)
        return Example(tuple(Message(*turn) for turn in messages), *rest)

    @property
    def hashes(self) -> np.ndarray:
        """The rows' digests as bytes, (n, 32) uint8."""
        return self.column(self._digests, np.uint8, 32)


class EncodedRows(Spooled[Encoded]):
    """Rows as token ids."""

    def __init__(self) -> None:
        super().__init__()
        self._lengths, self._labels, self._largest = array("i"), array("i"), array("i")

    def _pack(self, value: Encoded) -> bytes:
        self._lengths.append(len(value))
        self._labels.append(value.response_tokens)
        self._largest.append(max(value.ids, default=-1))
        runs = [len([*run]) for _, run in groupby(value.response)]
        begins = bool(value.response) and value.response[0]
        ids = array("i", value.ids).tobytes()
        return marshal.dumps((ids, begins, runs, value.prompt, value.shortened, value.lead))

    def _unpack(self, record: bytes) -> Encoded:
        ids, label, runs, *rest = marshal.loads(record)
        response: list[bool] = []
        for run in runs:
            response += [label] * run
            label = not label
        return Encoded(tuple(array("i", ids)), tuple(response), *rest)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, (n,) int32."""
        return self.column(self._lengths, np.int32)

    @property
    def labels(self) -> np.ndarray:
        """Label tokens of every row, (n,) int32."""
        return self.column(self._labels, np.int32)

    @property
    def largest(self) -> np.ndarray:
        """The largest token id of every row, (n,) int32."""
        return self.column(self._largest, np.int32)


def digests(examples: Sequence[Example]) -> Iterator[str]:
    """The digest of every row, in order."""
    if isinstance(examples, Examples):
        return (row.tobytes().hex() for row in examples.hashes)
    return (example.digest for example in examples)


def largest_ids(rows: Sequence[Encoded]) -> list[int]:
    """The largest token id of every row."""
    return rows.largest.tolist() if isinstance(rows, EncodedRows) else [max(r.ids) for r in rows]


def lengths(rows: Sequence[Encoded]) -> np.ndarray:
    """Tokens of every row, (n,)."""
    if isinstance(rows, EncodedRows):
        return rows.lengths
    return np.fromiter((len(row) for row in rows), dtype=np.int32, count=len(rows))


def label_counts(rows: Sequence[Encoded]) -> np.ndarray:
    """Label tokens of every row, (n,)."""
    if isinstance(rows, EncodedRows):
        return rows.labels
    return np.fromiter((row.response_tokens for row in rows), dtype=np.int32, count=len(rows))
