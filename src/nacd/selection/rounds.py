"""From similarities of n training rows to t target rows, (n, t), to one verdict a training row.

`round_robin`: target rows take turns to choose (Ivison et al., arXiv 2503.01807), so that every
one of them is served. `subtask_max`: the mean over a subtask's target rows, then the largest over
subtasks (LESS, arXiv 2402.04333), so that a row good for one subtask alone counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

FIRST = 1024
"""Rows that are sorted at first."""


def round_robin(similarity: np.ndarray) -> Iterator[int]:
    """Target rows in turn each take the most similar training row that is still there.

    Args:
        similarity: (n, t), t at least 1; higher is more alike. Of two equals the earlier row is
            taken.

    Yields:
        All n row indices, each once.
    """
    rows, targets = similarity.shape
    taken = np.zeros(rows, dtype=bool)
    orders = [_best_first(similarity[:, target]) for target in range(targets)]
    for number in range(rows):
        row = next(row for row in orders[number % targets] if not taken[row])
        taken[row] = True
        yield row


def _best_first(scores: np.ndarray) -> Iterator[int]:
    """Row indices by score (n,), the highest first, of two equals the earlier; sorted as far as
    they are read: of a million rows a target row seldom takes more than some thousands."""
    badness, done, wanted = -scores, 0, FIRST
    while done < len(scores):
        best = np.arange(len(scores))
        if wanted < len(scores):
            last = np.partition(badness, wanted)[wanted]
            if not np.isnan(last):  # what is no number comes at the end
                best = np.flatnonzero(badness <= last)  # with all equals
        order = best[np.argsort(badness[best], kind="stable")]
        yield from order[done:].tolist()
        done, wanted = len(order), 8 * wanted


def subtask_max(scores: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Mean over each subtask's target rows, then the largest over subtasks.

    Args:
        scores: (n, t).
        groups: t names of subtasks; all alike: one subtask.

    Returns:
        (n,) float64.

    Raises:
        ValueError: not one name a target row, or none at all.
    """
    if len(groups) != scores.shape[1] or not len(groups):
        raise ValueError(f"{scores.shape[1]} target rows but {len(groups)} names of subtasks")
    names = np.array(groups)
    means = [scores[:, names == name].mean(axis=1, dtype=np.float64) for name in sorted({*groups})]
    return np.max(means, axis=0)
