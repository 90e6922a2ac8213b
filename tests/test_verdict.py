"""What a run says of itself: by rule, from the table's figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nacd.distilling import judge


def table(
    minus: float, spread: float | None, shuffled: float | None = None, trainings: int = 3
) -> list[dict[str, Any]]:
    text: dict[str, Any] = {
        "method": "text",
        "report_nll": 2.5 + minus,
        "minus_seeds": minus,
        "trainings": trainings,
    }
    rows = [{"method": "seeds", "report_nll": 2.5}, text]
    if spread is not None:
        text["minus_seeds_95"] = spread
    if shuffled is not None:
        rows.append({"method": "seeds-shuffled", "report_nll": shuffled})
    return rows


def draws(nll: float) -> dict[str, Any]:
    return {"method": "random", "report_nll": nll, "sd": 0.04}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (table(-0.1, 0.05), "beats its untouched seeds by 0.100"),
        (table(-0.1, 0.05, shuffled=2.45), "beats its untouched seeds by 0.100"),
        (table(-0.1, 0.05, shuffled=2.4), "The seeds, shuffled, reach 2.400"),
        ([*table(-0.1, 0.05), draws(2.43)], "But random rows do about as well (2.430)."),
        ([*table(-0.1, 0.05), draws(2.47)], "(95 % interval ±0.050)."),
        (table(0.1, 0.05), "is worse than its untouched seeds by 0.100"),
        (table(-0.1, 0.2), "cannot be told apart"),
        (table(-0.1, None), "One training a row"),
        (table(-0.1, 0.05, trainings=2), "2 trainings a row: NACD text minus seeds is -0.100"),
        ([], "was not compared with its seeds on report rows."),
        (
            [{"method": "text", "label": "NACD text", "report_nll": None, "trainings": 3}],
            "was not compared with its seeds on report rows (trainings diverged: NACD text).",
        ),
        (
            [
                *table(-0.1, 0.05),
                {"method": "random", "label": "random rows", "report_nll": None, "sd": None},
                {"method": "seeds-shuffled", "label": "", "report_nll": None, "sd": None},
            ],
            "(95 % interval ±0.050).",
        ),
    ],
)
def test_the_verdict_follows_the_table(rows: list[dict[str, Any]], said: str) -> None:
    learned: Any = SimpleNamespace(best_step=10)
    verdict = judge(rows, 0.1, learned)
    assert said in verdict
    assert ("random rows" in verdict) == ("random rows" in said)
    assert ("nothing is gained" in verdict) == (said.startswith("The seeds, shuffled"))


@pytest.mark.parametrize(("step", "changed"), [(0, 0.1), (10, 0.0)])
def test_unchanged_seeds_are_called_seeds(step: int, changed: float) -> None:
    learned: Any = SimpleNamespace(best_step=step)
    assert "the exported rows are the seeds" in judge(table(-0.1, 0.05), changed, learned)
