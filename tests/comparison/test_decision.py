"""What a comparison says to do: against random rows, the best real choice, the starting rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_table import cell

from nacd.comparison.decision import decided_lines, decision, warnings
from nacd.comparison.table import best_real, summarise

ORDER = ("zero-shot", "random", "longest", "bm25", "rds+", "seeds", "text", "text-shuffled", "full")
ROWS = np.random.default_rng(0).normal(6, 1, 60)


def trained(trainings: int = 5, **means: float) -> list[dict[str, Any]]:
    """Trainings that spread a little around these differences from a common level."""
    cells: list[dict[str, Any]] = [
        cell(method.replace("_", "-").replace("rds", "rds+"), seed, (ROWS + 2 * mean).tolist())
        for method, mean in means.items()
        for seed in range(trainings)
    ]
    for number, own in enumerate(cells):
        shift = 0.01 * ((7 * number) % 11 % 5 - 2)
        own |= {"row_nll": [x + shift for x in own["row_nll"]]}
        own["report_nll"] += shift / 2
    return cells


def table(trainings: int = 5, **means: float) -> list[dict[str, Any]]:
    return summarise(trained(trainings, **means), ORDER)


@pytest.mark.parametrize(
    ("means", "start", "part"),
    [
        (
            {"random": 0.0, "longest": 0.2, "seeds": -0.05, "text": -0.2},
            "Take the distilled rows: test NLL is 0.1",
            "lower than with the starting rows.",
        ),
        (
            {"random": 0.0, "rds": -0.3, "seeds": -0.05, "text": -0.2},
            "Take the rows by RDS+: test NLL is 0.2",
            "with the distilled rows it is 0.0",
        ),
        (
            {"random": 0.0, "rds": 0.3, "seeds": 0.0, "text": 0.2},
            "Take random rows, not the distilled rows: ",
            "higher than with random rows",
        ),
        (
            {"zero_shot": 1.0, "random": 0.0, "longest": 0.2, "bm25": -0.1},
            "Take the rows by BM25: test NLL is 0.1",
            "lower than with random rows.",
        ),
        ({"random": 0.0, "bm25": 0.1}, "Take random rows, not the rows by BM25: ", "higher than"),
        (
            {"longest": 0.2, "bm25": 0.1},
            "Nothing to decide by: the rows by BM25",
            "--methods random",
        ),
        ({"zero_shot": 1.0}, "Nothing was trained", "--methods"),
        ({"random": 0.0, "full": -0.1}, "Nothing to decide by: full", "--methods"),
    ],
)
def test_what_to_do(means: dict[str, float], start: str, part: str) -> None:
    said = decision(table(5, **means))
    assert said.startswith(start)
    assert part in said


def test_only_real_rows_are_a_real_choice() -> None:
    figures = {"text-last": 1.0, "full": 1.0, "soft": 1.0, "zero-shot": 1.0, "random-prompts": 1.0}
    assert best_real(figures) == ""
    assert best_real(figures | {"random": 2.0, "swaps": 1.5, "bm25": None}) == "swaps"


def test_two_trainings_decide_nothing() -> None:
    said = decision(table(2, random=0.0, bm25=-0.5))
    assert said.startswith("Too few to tell (2 trainings a row; give more --trainings): ")


def test_intervals_of_sets_of_which_the_best_is_taken_hold_together() -> None:
    cells = trained(random=0.0, longest=0.1, bm25=-0.1)
    both, alone = (
        {row["method"]: row for row in summarise(own, ORDER)}
        for own in (cells, [one for one in cells if one["method"] != "longest"])
    )
    half = both["bm25"]["minus_random"]["over_trainings"]
    ratio = stats.t.ppf(1 - 0.025 / 2, 4) / stats.t.ppf(1 - 0.05 / 2, 4)
    assert half > 0
    assert half == pytest.approx(ratio * alone["bm25"]["minus_random"]["over_trainings"])
    assert both["longest"]["best"] == "bm25"
    assert "best" not in both["bm25"]


def test_what_weakens_a_comparison() -> None:
    found = table(2, random=0.0, seeds=0.0, text=-0.1)
    config = {"recipe": {"shuffle": False}}
    said = [name for name, _ in warnings(found, {"report": 60}, config)]
    assert said == ["Only two trainings a row.", "Only 60 test rows.",
                    "In the order of the file alone."]  # fmt: skip
    shuffled = table(5, random=0.0, text=-0.1, text_shuffled=-0.1)
    packaged = [row | {"target": "smollm2"} for row in shuffled]
    assert [name for name, _ in warnings(packaged, {"report": 600}, config)] == [
        "The packaged SmolLM2 is a 4-bit copy."
    ]


def test_the_first_budget_has_the_last_line() -> None:
    found = table(random=0.0, bm25=-0.1)
    both = [*found, *(row | {"budget": "5%"} for row in found)]
    shown = [*decided_lines(both)]
    assert max(map(len, shown)) <= 80
    text = " ".join(shown)
    assert text.startswith("With 5% of the rows for m, take the rows by BM25: ")
    assert text.index("With 5%") < text.index("With 4 rows for m, take the rows by BM25: ")
