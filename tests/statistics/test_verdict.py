"""What to do, by one rule: from differences to a word, and from words to a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nacd.commands.distill import differences, judge
from nacd.statistics.verdict import Difference, Rival, decide, word

LEARNED: Any = SimpleNamespace(best_step=10)
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
            "Too few to tell (2 trainings a row; give --trainings 5): ",
            "0.200 (0.150 to 0.250) nats per token lower than with random rows.",
        ),
        (
            {"random": kept(-0.2, None, 1)},
            "Too few to tell (one training a row; give --trainings 5): ",
            "0.200 (no interval) nats",
        ),
        ({}, "Compare the distilled rows before you use them: ", "held against no real rows"),
    ],
)
def test_what_to_do_with_distilled_rows(held: dict[str, Any], decision: str, figures: str) -> None:
    said = judge([], 0.1, LEARNED, {"text": held})
    assert said.startswith(decision)
    assert figures in said
    assert said.count(". ") == 0, "one sentence"


def test_trainings_that_diverged_are_named() -> None:
    said = judge(DIVERGED, 0.1, LEARNED, differences(DIVERGED, {}, [1]))
    assert said.endswith("(trainings diverged: NACD text).")


@pytest.mark.parametrize(("step", "changed"), [(0, 0.1), (10, 0.0)])
def test_unchanged_starting_rows_are_called_that(step: int, changed: float) -> None:
    learned: Any = SimpleNamespace(best_step=step)
    held = {"text": {"random": kept(-0.1)}}
    assert "exported rows are the starting rows" in judge([], changed, learned, held)


def test_a_table_s_differences_are_paired_and_over_both() -> None:
    def cells(shift: float) -> list[dict[str, Any]]:
        rows = [[2.0 + shift + 0.1 * seed, 4.0 + shift + 0.1 * seed] for seed in range(3)]
        return [
            {"seed": seed, "report_nll": sum(own) / 4, "row_nll": own}
            for seed, own in enumerate(rows)
        ]

    table = [
        {"method": name, "report_nll": 1.0, "trainings": 3} for name in ("random", "seeds", "text")
    ]
    made = {"random": cells(0.0), "seeds": cells(-0.2), "text": cells(-0.4)}
    held = differences(table, made, [2, 2])
    assert held["text"]["random"]["mean"] == pytest.approx(-0.2)
    assert held["text"]["seeds"]["mean"] == pytest.approx(-0.1)
    assert held["text"]["seeds"]["over_trainings"] == pytest.approx(0.0, abs=1e-9)
    assert held["seeds"]["random"]["over_questions"] == pytest.approx([-0.1, -0.1])


def test_the_worst_is_named_first() -> None:
    rivals = [Rival("a", Difference(0.1, 0.01)), Rival("b", Difference(0.3, 0.01))]
    assert decide("c", rivals, "").startswith("Take b, not c: ")
