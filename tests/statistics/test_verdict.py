"""What to do, by one rule: from differences to a word, and from words to a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from nacd.commands.distill import judge
from nacd.statistics.verdict import Difference, Rival, decide, word

DIVERGED = [{"method": "text", "label": "NACD text", "report_nll": None, "trainings": 3}]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (Difference(-0.1, 0.05, (-0.15, -0.05)), "better"),
        (Difference(-0.1, 0.05), "better"),
        (Difference(-0.1, 0.05, (-0.25, 0.05)), "cannot be told"),
        (Difference(-0.1, 0.2, (-0.15, -0.05)), "cannot be told"),
        (Difference(0.1, 0.05, (0.02, 0.18)), "worse"),
        (Difference(-0.1, None, (-0.15, -0.05)), "too few"),
        (Difference(-0.1, 0.05, (-0.15, -0.05), figures=2), "too few"),
    ],
)
def test_both_intervals_have_to_carry_a_claim(held: Difference, said: str) -> None:
    assert word(held) == said


def kept(mean: float, spread: float | None = 0.05, figures: int = 3) -> dict[str, Any]:
    rows = [mean - 0.01, mean + 0.01]
    return {"mean": mean, "over_trainings": spread, "over_questions": rows, "figures": figures}


def table(held: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A results table whose text is so far from the other rows."""
    rows = [{"method": name, "report_nll": 2.0 - one["mean"]} for name, one in held.items()]
    text: dict[str, Any] = {"method": "text", "label": "NACD text", "report_nll": 2.0}
    text |= {f"minus_{name}": one for name, one in held.items()}
    if rows:
        best = min(rows, key=lambda row: row["report_nll"])["method"]
        text |= {"best": best, "minus_best": held[best]}
    return [*rows, text]


@pytest.mark.parametrize(
    ("held", "decision", "figures"),
    [
        (
            {"random": kept(-0.2), "seeds": kept(-0.1)},
            "Take the distilled rows: test NLL is ",
            "0.200 (0.150 to 0.250) nats per token lower than with random rows and 0.100 (0.050 to "
            "0.150) lower than with the starting rows.",
        ),
        (
            {"random": kept(-0.02), "seeds": kept(-0.1)},
            "Take random rows: with the distilled rows, test NLL is ",
            "0.020 (\N{MINUS SIGN}0.030 to 0.070) nats per token lower than with random rows (it "
            "may be chance) and 0.100",
        ),
        (
            {"random": kept(-0.1), "seeds": kept(0.1)},
            "Take the starting rows, not the distilled rows: with these, test NLL is ",
            "0.100 (0.050 to 0.150) higher than with the starting rows.",
        ),
        # an unlucky order of the starting rows is no gain of the text
        (
            {"random": kept(-0.2), "seeds": kept(-0.1), "seeds-shuffled": kept(0.0)},
            "Take the starting rows in another order: ",
            "(it may be chance)",
        ),
        (
            {"random": kept(-0.2), "seeds": kept(-0.1), "seeds-shuffled": kept(-0.12)},
            "Take the distilled rows: ",
            "lower than with the starting rows.",
        ),
        (
            {"random": kept(-0.2, figures=2)},
            "Too few to tell (2 trainings a row; give more --trainings): ",
            "0.200 (0.150 to 0.250) nats per token lower than with random rows.",
        ),
        (
            {"random": kept(-0.2, None, 1)},
            "Too few to tell (one training a row; give more --trainings): ",
            "0.200 (no interval) nats",
        ),
        ({}, "Compare the distilled rows before you use them: ", "held against no real rows"),
    ],
)
def test_what_to_do_with_distilled_rows(held: dict[str, Any], decision: str, figures: str) -> None:
    said = judge(table(held), 0.1, 10)
    assert said.startswith(decision)
    assert figures in said
    assert said.count(". ") == 0, "one sentence"


def test_trainings_that_diverged_are_named() -> None:
    assert judge(DIVERGED, 0.1, 10).endswith("(trainings failed: NACD text).")


@pytest.mark.parametrize(("step", "changed"), [(0, 0.1), (10, 0.0)])
def test_unchanged_starting_rows_are_called_that(step: int, changed: float) -> None:
    said = judge(table({"random": kept(-0.1)}), changed, step)
    assert "exported rows are the starting rows" in said


def test_the_worst_is_named_first() -> None:
    rivals = [Rival("a", Difference(0.1, 0.01)), Rival("b", Difference(0.3, 0.01))]
    assert decide("c", rivals, "").startswith("Take b, not c: ")
