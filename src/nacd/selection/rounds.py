"""From similarities of n training rows to t target rows, (n, t), to one verdict a training row.

`round_robin`: target rows take turns to choose (Ivison et al., arXiv 2503.01807), so that every
one of them is served. `subtask_max`: the mean over a subtask's target rows, then the largest over
subtasks (LESS, arXiv 2402.04333), so that a row good for one subtask alone counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def round_robin(similarity: np.ndarray) -> Iterator[int]:
    """Target rows in turn each take the most similar training row that is still there.

    Args:
        similarity: (n, t), t at least 1; higher is more alike. Of two equals the earlier row is
            taken.

    Yields:
        All n row indices, each once.
    """
    orders = np.argsort(-similarity, axis=0, kind="stable")
    rows, targets = similarity.shape
    taken = np.zeros(rows, dtype=bool)
    place = [0] * targets
    for number in range(rows):
        turn = number % targets
        while taken[orders[place[turn], turn]]:
            place[turn] += 1
        row = int(orders[place[turn], turn])
        taken[row] = True
        yield row


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
