"""Rows in a temporary file come back as they went in."""

from __future__ import annotations

import numpy as np

from nacd.data import Encoded, EncodedRows, Example, Examples, Message
from nacd.data.stored import digests, label_counts, lengths

TURNS = (Message("user", "a \u2028 b"), Message("assistant", "水 🦊", train=False))
EXAMPLES = [
    Example(TURNS, "mine.jsonl:1"),
    Example((Message("system", ""), *TURNS), "mine.jsonl:2", ("x", "y"), 1, True, "a group"),
    Example(TURNS, "mine.jsonl:3"),
]
ROWS = [
    Encoded((5, 70_000, 2), (False, True, True), (0, 1)),
    Encoded((1,), (True,), (0, 0), 3, "<think>\n"),
    Encoded((9, 8, 7, 6), (True, False, True, False), (1, 3)),
    Encoded((), (), (0, 0)),
]


def test_examples() -> None:
    stored = Examples.of(EXAMPLES)
    assert list(stored) == EXAMPLES
    assert [*digests(stored)] == [*digests(EXAMPLES)] == [e.digest for e in EXAMPLES]
    assert [*digests(stored.take([2, 1]))] == [EXAMPLES[2].digest, EXAMPLES[1].digest]


def test_encoded_rows() -> None:
    stored = EncodedRows.of(ROWS)
    assert list(stored) == ROWS
    for rows in (stored, ROWS):
        assert lengths(rows).tolist() == [3, 1, 4, 0]
        assert label_counts(rows).tolist() == [2, 1, 2, 0]
    assert stored.largest.tolist() == [70_000, 1, 9, -1]
    part = stored.take(np.array([2, 0]))
    assert (lengths(part).tolist(), part.largest.tolist()) == ([4, 3], [9, 70_000])
