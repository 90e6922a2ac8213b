"""Intervals against their definitions, and against how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nacd.statistics.intervals import (
    difference_interval,
    mean_error,
    question_bootstrap,
    t_interval,
)


def test_t_interval_is_the_textbook_one() -> None:
    assert t_interval([1.0]) is None
    # n = 4, sd = 1.29099, t(0.975, 3) = 3.18245
    assert t_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx(3.18245 * 1.29099 / 2, rel=1e-4)


def test_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(5.0, 2.0, size=(4000, 3))
    covered = [abs(float(x.mean()) - 5.0) <= (t_interval(x.tolist()) or 0.0) for x in draws]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_bootstrap_agrees_with_the_delta_method() -> None:
    generator = np.random.default_rng(1)
    tokens = generator.integers(1, 8, size=400)
    difference = 0.1 * tokens + generator.normal(0, 1.0, size=400)
    low, high = question_bootstrap(difference, tokens)
    ratio = difference.sum() / tokens.sum()
    residual = difference - ratio * tokens
    spread = 1.96 * residual.std() * np.sqrt(len(tokens)) / tokens.sum()
    assert low == pytest.approx(ratio - spread, abs=0.15 * spread)
    assert high == pytest.approx(ratio + spread, abs=0.15 * spread)


def test_a_row_without_difference_has_no_width() -> None:
    tokens = np.array([2, 3, 4])
    assert question_bootstrap(0.5 * tokens, tokens) == pytest.approx((0.5, 0.5))


def test_difference_interval_is_welchs() -> None:
    a, b = [2.1, 2.4, 2.2, 2.35, 2.5], [2.0, 2.02, 1.99]
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    half = difference_interval(a, b, 0.9)
    assert half == pytest.approx((expected.high - expected.low) / 2)
    assert half == difference_interval(b, a, 0.9)
    assert difference_interval([1.0, 1.0], [2.0, 2.0]) == 0.0


def test_one_training_is_taken_to_spread_as_the_others_do() -> None:
    a, b = [2.1, 2.4, 2.2, 2.35, 2.5], [2.0]
    expected = stats.ttest_ind(a, b, equal_var=True).confidence_interval()
    half = (expected.high - expected.low) / 2
    assert difference_interval(a, b) == difference_interval(b, a) == pytest.approx(half)
    assert difference_interval([1.0], [2.0]) is None
    assert difference_interval([1.0, 2.0], []) is None


def test_mean_error_agrees_with_the_bootstrap() -> None:
    generator = np.random.default_rng(1)
    tokens = generator.integers(1, 8, size=400)
    difference = 0.1 * tokens + generator.normal(0, 1.0, size=400)
    low, high = question_bootstrap(difference, tokens)
    assert 2 * 1.96 * mean_error(difference, tokens) == pytest.approx(high - low, rel=0.1)
    assert mean_error(np.ones(1), np.ones(1)) == np.inf
