"""How sure a difference is: over trainings by Student's t, over questions by the bootstrap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats

FEW = 3
"""Trainings below which an interval says too little of chance to be judged by."""


def t_interval(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half the width of the t-interval of the mean of `values`; None below two of them."""
    if len(values) < 2:
        return None
    quantile = float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def question_bootstrap(
    difference: np.ndarray,
    tokens: np.ndarray,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a difference in NLL per token, the report rows drawn anew.

    Args:
        difference: (n,) difference in every row's summed NLL, the mean over trainings.
        tokens: (n,) response tokens of every row.
        draws: bootstrap samples.
        level: of the interval.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    even = np.full(len(tokens), 1 / len(tokens))
    ratios = np.empty(draws)
    for k in range(draws):  # rows drawn with replacement: how often each is drawn, (n,)
        counts = generator.multinomial(len(tokens), even)
        ratios[k] = (counts @ difference) / (counts @ tokens)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
