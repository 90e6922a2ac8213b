"""How sure a difference is: over trainings by Student's t, over questions by the bootstrap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats

FEW = 3
"""Trainings below which an interval says too little of chance to be judged by."""
FEW_TEST = 30
"""Test rows below which nothing is claimed: others could turn it round."""


def few_test_rows(rows: int) -> str:
    """The sentence beside a figure of too few test rows; empty where they suffice."""
    if rows >= FEW_TEST:
        return ""
    return (
        f"Only {rows} test row{'s' * (rows != 1)}: too few for a claim, as others could turn it "
        f"round (at least {FEW_TEST} are needed)."
    )


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


def mean_error(difference: np.ndarray, tokens: np.ndarray) -> float:
    """Standard error, over rows, of a difference in NLL per token (delta method for a ratio).

    Args:
        difference: (n,) difference in every row's summed NLL.
        tokens: (n,) response tokens of every row.

    Returns:
        In nats per token; infinite for fewer than two rows.
    """
    if len(tokens) < 2:
        return math.inf
    left = difference - tokens * (difference.sum() / tokens.sum())
    return float(np.sqrt(len(left) * left.var(ddof=1)) / tokens.sum())


def difference_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95
) -> float | None:
    """Half the width of the interval of mean(a) - mean(b), of trainings that are not paired.

    Welch's, which lets the two sides spread differently. A side of one training has no spread of
    its own: it is taken to spread as the other does, and Student's interval is given.

    Args:
        a: figures of the trainings of one side.
        b: those of the other.
        level: of the interval.

    Returns:
        None where neither side has two trainings.
    """
    if max(len(a), len(b)) < 2 or not min(len(a), len(b)):
        return None
    if min(len(a), len(b)) < 2:
        known = a if len(a) > 1 else b
        error = statistics.stdev(known) * math.sqrt(1 / len(a) + 1 / len(b))
        freedom = len(known) - 1.0
    else:
        shares = [statistics.variance(side) / len(side) for side in (a, b)]
        error = math.sqrt(sum(shares))
        if not error:
            return 0.0
        terms = [s**2 / (len(side) - 1) for s, side in zip(shares, (a, b), strict=True)]
        freedom = sum(shares) ** 2 / sum(terms)
    return float(stats.t.ppf((1 + level) / 2, freedom)) * error
