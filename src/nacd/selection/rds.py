"""RDS+: rows whose hidden states are like the target rows' (Ivison et al., arXiv 2503.01807).

A row is the position-weighted mean of its last hidden states (`nacd.selection.hidden`); similarity
is the cosine; target rows take turns to choose.
"""

from __future__ import annotations

import numpy as np

from nacd.selection.hidden import hidden_flops, hidden_states
from nacd.selection.method import Ranking, Task
from nacd.selection.rounds import round_robin


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of the rows of a (n, d) with those of b (t, d): (n, t); 0 for a row of zeros."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (a, b))
    return a @ b.T


def rds(task: Task) -> Ranking:
    """Training rows by RDS+; a row's score is its best cosine with a target row."""
    train = hidden_states(task, "train", "weighted")
    target = hidden_states(task, "target", "weighted")
    similarity = cosine(train, target)
    return Ranking(
        round_robin(similarity),
        similarity.max(axis=1).astype(np.float64),
        hidden_flops(task, "train", "target"),
    )
