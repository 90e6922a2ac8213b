"""The rows with the longest responses first (Zhao et al., arXiv 2402.04833)."""

from __future__ import annotations

import numpy as np

from nacd.data.stored import label_counts
from nacd.selection.method import Ranking, Task


def longest(task: Task) -> Ranking:
    """Training rows by their label tokens, most first; of two alike, the earlier row."""
    tokens = label_counts(task.prepared.train.rows).astype(np.float64)
    return Ranking(np.argsort(-tokens, kind="stable").tolist(), tokens)
