"""What any order of rows can be passed through: leave out near-copies, keep groups in proportion.

Both are lazy: they read the order only as far as they are read.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from nacd.config import SelectionConfig
from nacd.data import Example
from nacd.selection.words import words

if TYPE_CHECKING:
    from nacd.model.prepare import Part

PERMUTATIONS = 128
"""Hashes of a MinHash signature."""
RECALL = 0.99
"""Least chance that two rows just as alike as the threshold are compared."""


def filtered(order: Iterable[int], train: Part, config: SelectionConfig) -> Iterable[int]:
    """The order through the filters that are asked for."""
    if config.dedup:
        order = deduplicated(order, train.examples, config.dedup)
    if config.stratify:
        order = stratified(order, [example.group for example in train.examples])
    return order


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

    Candidates come from MinHash signatures (Broder 1997; `datasketch`), then the exact similarity
    decides: a row that is less alike than the threshold is never left out.

    Args:
        order: row indices.
        examples: all rows.
        threshold: least Jaccard similarity of two rows' sets of words that makes them copies.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    blank = MinHash(num_perm=PERMUTATIONS)
    kept: dict[Hashable, frozenset[str]] = {}
    for row in order:
        found = frozenset(words(examples[row]))
        signature = blank.copy()
        signature.update_batch([word.encode() for word in sorted(found)])
        if any(jaccard(found, kept[near]) >= threshold for near in index.query(signature)):
            continue
        kept[row] = found
        index.insert(row, signature)
        yield row


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared words over all words of two rows; 1 for two without a word."""
    return len(a & b) / len(a | b) if a or b else 1.0


def stratified(order: Iterable[int], groups: Sequence[str]) -> Iterator[int]:
    """The order interleaved, so that any number of first rows holds every group in proportion.

    Next comes always the group that is furthest below its share, and of it the row that the order
    has first. So no group is ever a whole row above its share.

    Args:
        order: row indices.
        groups: the group of each of the n rows; its share is its part of these.
    """
    sizes, total = Counter(groups), len(groups)
    waiting: dict[str, deque[int]] = {g: deque() for g in sorted(sizes, key=lambda g: -sizes[g])}
    taken = dict.fromkeys(waiting, 0)
    source = iter(order)
    count = 0
    while waiting:
        group = max(waiting, key=lambda g: sizes[g] * (count + 1) - taken[g] * total)
        queue = waiting[group]
        while not queue and (row := next(source, None)) is not None:
            waiting[groups[row]].append(row)
        if not queue:  # the order holds no more of it
            del waiting[group]
            continue
        yield queue.popleft()
        taken[group] += 1
        count += 1
