"""Rows that are near-copies of earlier ones: MinHash finds candidates, shared words decide.

    signature   128 hashes of a row's words (Broder 1997; `datasketch`), cut into bands
    candidates  kept rows that have a band in common with the row
    copies      candidates of which |A and B| / |A or B| of the words reaches the threshold

A band of a kept row is twelve bytes: a 64-bit hash and the row's number, in sorted arrays that are
joined as they grow (so there are few, and a look-up is a few binary searches). Words are kept as
64-bit hashes outside the memory. Two words, or bands, that shared a hash would be taken for one:
for a million rows of a hundred words, that any two do has a chance below one in a thousand.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nacd.data import Example
from nacd.selection.words import words
from nacd.store.spool import Spool

PERMUTATIONS = 128
"""Hashes of a MinHash signature."""
RECALL = 0.99
"""Least chance that two rows just as alike as the threshold are compared."""
FRESH = 1 << 16
"""Bands that are kept in a dictionary before they are sorted."""


def bands(threshold: float) -> tuple[int, int]:
    """Bands and rows a band of the signature: the fewest comparisons that keep `RECALL`.

    Two rows of Jaccard similarity s share a band of r hashes with chance s^r, and any of b bands
    with 1 - (1 - s^r)^b (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4).
    """
    best = (PERMUTATIONS, 1)
    for r in range(2, PERMUTATIONS // 2 + 1):
        b = PERMUTATIONS // r
        if 1 - (1 - threshold**r) ** b >= RECALL:
            best = (b, r)
    return best


def deduplicated(
    order: Iterable[int], examples: Sequence[Example], threshold: float
) -> Iterator[int]:
    """The order without rows that are near-copies of an earlier one.

    A row that is less alike than the threshold is never left out.

    Args:
        order: row indices.
        examples: all rows.
        threshold: least Jaccard similarity of two rows' sets of words that makes them copies.
    """
    from datasketch import MinHash

    index = Bands(*bands(threshold))
    blank = MinHash(num_perm=PERMUTATIONS)
    kept = Spool()
    for row in order:
        found = {*words(examples[row])}
        own = {hash(word) for word in found}
        signature = blank.copy()
        signature.update_batch([word.encode() for word in sorted(found)])
        keys = index.keys(signature.hashvalues)
        near = (array("q", kept.read(k, k + 1)[0]) for k in index.find(keys))
        if any(_alike(own, other, threshold) for other in near):
            continue
        index.add(keys, len(kept))
        kept.append(array("q", own).tobytes())
        yield row


def _alike(a: set[int], b: Sequence[int], threshold: float) -> bool:
    """Whether shared words over all words reach the threshold; two without a word are copies."""
    shared = sum(word in a for word in b)
    total = len(a) + len(b) - shared
    return not total or shared / total >= threshold


class Bands:
    """Which rows have a band of their signature in common.

    Args:
        count: bands of a signature.
        size: hashes of a band.
    """

    def __init__(self, count: int, size: int):
        self._count, self._size = count, size
        odd = np.random.default_rng(0).integers(0, 2**63, (count, size), dtype=np.uint64)
        self._factors = 2 * odd + 1  # a band's own, so that equal hashes of two bands differ
        self._fresh: defaultdict[int, list[int]] = defaultdict(list)
        self._waiting = 0
        self._sorted: list[tuple[np.ndarray, np.ndarray]] = []
        """Keys in order, and the row of each; the longest first."""

    def keys(self, signature: np.ndarray) -> np.ndarray:
        """A 64-bit hash of every band, (bands,) uint64."""
        own = signature[: self._count * self._size].reshape(self._count, self._size)
        mixed = (own.astype(np.uint64) + np.uint64(1)) * self._factors
        mixed ^= mixed >> np.uint64(29)
        return (mixed * self._factors).sum(axis=1, dtype=np.uint64)

    def find(self, keys: np.ndarray) -> list[int]:
        """The rows that have one of these."""
        found: set[int] = set()
        for key in keys.tolist():
            if key in self._fresh:
                found.update(self._fresh[key])
        for known, rows in self._sorted:
            starts = np.searchsorted(known, keys)
            for start in starts[known.take(starts, mode="clip") == keys].tolist():
                stop = np.searchsorted(known, known[start], side="right")
                found.update(rows[start:stop].tolist())
        return sorted(found)

    def add(self, keys: np.ndarray, row: int) -> None:
        """Remember a row by its keys."""
        for key in keys.tolist():
            self._fresh[key].append(row)
        self._waiting += len(keys)
        if self._waiting < FRESH:
            return
        pairs = [(key, row) for key, rows in self._fresh.items() for row in rows]
        self._sorted.append(_in_order(
            np.array([key for key, _ in pairs], dtype=np.uint64),
            np.array([row for _, row in pairs], dtype=np.int32),
        ))  # fmt: skip
        self._fresh.clear()
        self._waiting = 0
        while len(self._sorted) > 1 and len(self._sorted[-2][0]) <= 2 * len(self._sorted[-1][0]):
            last, before = self._sorted.pop(), self._sorted.pop()
            self._sorted.append(
                _in_order(*(np.concatenate(both) for both in zip(before, last, strict=True)))
            )


def _in_order(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], rows[order]
