"""A seeded random order: the baseline of every method."""

from __future__ import annotations

import numpy as np

from nacd.selection.method import Ranking, Task


def random_order(rows: int, seed: int) -> list[int]:
    """A permutation of row indices that the seed alone decides."""
    return np.random.default_rng((seed, 17)).permutation(rows).tolist()


def random(task: Task) -> Ranking:
    """All training rows in a random order."""
    return Ranking(random_order(len(task.prepared.train), task.seed))
