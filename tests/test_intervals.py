"""Intervals against their definitions, and against how often they hold."""

from __future__ import annotations

import numpy as np
import pytest

from nacd.intervals import question_bootstrap, t_interval


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
