"""What any order of rows can be passed through: leave out near-copies, keep groups in proportion.

Both are lazy: they read the order only as far as they are read.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from sys import intern
from typing import TYPE_CHECKING

from nacd.config import SelectionConfig
from nacd.selection.copies import deduplicated

if TYPE_CHECKING:
    from nacd.model.prepare import Part


def filtered(order: Iterable[int], train: Part, config: SelectionConfig) -> Iterable[int]:
    """The order through the filters that are asked for."""
    if config.dedup:
        order = deduplicated(order, train.examples, config.dedup)
    if config.stratify:
        order = stratified(order, [intern(example.group) for example in train.examples])
    return order


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
