"""Greedy k-center: rows that leave no row far from a chosen one (Sener & Savarese 2018).

Algorithm 1 of arXiv 1708.00489 on mean hidden states: after a first row, drawn by the seed, always
the row farthest (Euclidean) from all chosen ones,

    next = argmax_i min over chosen j of |x_i - x_j|,

whose cover radius is at most twice the best possible for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nacd.selection.hidden import hidden_flops, hidden_states
from nacd.selection.method import Ranking, Task


def k_center(points: Tensor, first: int) -> Iterator[int]:
    """All points, farthest first; a point costs one pass over all of them when it is asked for.

    Args:
        points: (n, d).
        first: index of the first centre.

    Yields:
        n indices, each once; of two equally far, the earlier.
    """
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    centre = first
    for _ in range(len(points)):
        yield centre
        distance = torch.cdist(
            points, points[centre : centre + 1], compute_mode="donot_use_mm_for_euclid_dist"
        )[:, 0]
        nearest = torch.minimum(nearest, distance)
        nearest[centre] = -torch.inf  # a copy of a chosen row is at 0, a chosen row is never again
        centre = int(nearest.argmax())


def kcenter(task: Task) -> Ranking:
    """Training rows by greedy k-center on their mean hidden states."""
    points = torch.from_numpy(hidden_states(task, "train", "mean"))
    first = int(np.random.default_rng((task.seed, 31)).integers(len(points)))
    return Ranking(
        k_center(points.to(task.prepared.model.device), first), flops=hidden_flops(task, "train")
    )
