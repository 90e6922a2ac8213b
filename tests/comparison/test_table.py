"""From cells to a table: paired differences, what counts as better, gaps, notes."""

from __future__ import annotations

import numpy as np
import pytest

from nacd.comparison.table import by_draw, difference, summarise, verdict
from nacd.comparison.text import lines, notes


def cell(method: str, seed: int, nll: list[float]) -> dict[str, object]:
    tokens = [2] * len(nll)
    return {
        "target": "m",
        "budget": "4",
        "method": method,
        "seed": seed,
        "report_nll": sum(nll) / sum(tokens),
        "row_nll": nll,
        "row_tokens": tokens,
        "rows": 4,
        "tokens": 40,
        "steps": 2,
        "learning_rate": 1e-3,
        "training_seconds": 1.0,
    }


def test_differences_are_paired_and_need_both_intervals() -> None:
    generator = np.random.default_rng(0)
    base = [generator.normal(4, 1, 50) for _ in range(3)]
    seeds = [cell("seeds", i, x.tolist()) for i, x in enumerate(base)]
    better = [cell("text", i, (x - 0.5 + 0.01 * i).tolist()) for i, x in enumerate(base)]
    found = difference(better, seeds)
    assert found is not None
    assert found["mean"] == pytest.approx(-0.245)
    assert found["over_trainings"] == pytest.approx(4.3027 * 0.005 / np.sqrt(3), rel=1e-3)
    table = {row["method"]: row for row in summarise([*seeds, *better], ("seeds", "text"))}
    assert verdict(table["text"], "seeds") == "better"
    few = summarise([*seeds[:1], *better[:1]], ("seeds", "text"))[1]
    assert verdict(few, "seeds") == "too few"
    pair = summarise([*seeds[:2], *better[:2]], ("seeds", "text"))[1]
    assert verdict(pair, "seeds") == "too few", "as a run's own verdict"
    # one question alone makes the whole difference: trainings agree, questions do not
    lucky = [cell("text", i, [x[0] - 5, *x[1:]]) for i, x in enumerate(base)]
    row = summarise([*seeds, *lucky], ("seeds", "text"))[1]
    assert row["minus_seeds"]["over_trainings"] < 0.01
    assert verdict(row, "seeds") == "cannot be told"


def test_trainings_on_one_distillation_count_as_one() -> None:
    # two distillations, three trainings of each: what differs is the distillation, not the training
    shifts = [-0.5, 0.1, -0.52, 0.12, -0.48, 0.08]
    base = np.random.default_rng(0).normal(4, 1, 50)
    seeds = [cell("seeds", i, base.tolist()) | {"draw": i % 2} for i in range(6)]
    text = [
        cell("text", i, (base + shift).tolist()) | {"draw": i % 2} for i, shift in enumerate(shifts)
    ]
    found = difference(text, seeds)
    assert found is not None
    assert found["over_trainings"] == pytest.approx(12.7062 * 0.15, rel=1e-3)  # t of two figures
    row = summarise([*seeds, *text], ("seeds", "text"))[1]
    assert row["interval"] == pytest.approx(12.7062 * 0.15, rel=1e-3)
    alone = [a | {"draw": 0} for a in text]
    assert by_draw([1.0, 2.0], [0, 0]) == [1.0, 2.0]
    spread = difference(alone, [a | {"draw": 0} for a in seeds])
    assert spread is not None
    assert spread["over_trainings"] < 0.2


def test_gaps_recovered() -> None:
    cells = [
        cell("zero-shot", 0, [8.0, 8.0]),
        cell("random", 0, [6.0, 6.0]),
        cell("text", 0, [5.0, 5.0]),
        cell("full", 0, [4.0, 4.0]),
    ]
    order = ("zero-shot", "random", "text", "full")
    table = {row["method"]: row for row in summarise(cells, order)}
    assert table["text"]["recovered_from_zero-shot"] == pytest.approx(0.75)
    assert table["text"]["recovered_from_random"] == pytest.approx(0.5)


def test_what_the_table_has_no_column_for() -> None:
    cells = [
        cell("random", 0, [6.0, 6.0]),
        cell("text", 0, [5.0, 5.0]),
        cell("full", 0, [4.0, 4.0]),
        cell("longest", 0, [7.0, 7.0]),
    ]
    cells[1] |= {
        "choosing_seconds": 10.0,
        "choosing_flops": 1.92e13,
        "boundaries_kept": 0.912,
        "template": "qa",
        "accuracy": {"acc": 0.5, "lm_eval": "0.4.9", "shots": 0, "n": 2},
    }
    cells[2] |= {"training_seconds": 4.0}
    cells[3] |= {"choosing_flops": 0.0}
    table = summarise(cells, ("random", "longest", "text", "full"))
    assert notes(table, {"text": "NACD text"}) == [  # worse than random: on no way to the full data
        "accuracy by lm-eval 0.4.9: 2 questions, 0 shots, template qa",
        "share of the way from random rows to the full data: NACD text 50%",
        "token boundaries that this model's tokenizer keeps: NACD text 91%",
        "trainings after which the time to choose is repaid: NACD text 4",
        "floating-point operations spent on choosing: NACD text 19.2 TFLOP",
    ]
    shown = lines(table)
    assert max(map(len, shown)) <= 80
    assert "m, budget 4: accuracy by lm-eval 0.4.9: 2 questions, 0 shots, template qa" in shown
    cells[2] |= {"training_seconds": 1.0}
    again = {row["method"]: row for row in summarise(cells, ("random", "longest", "text", "full"))}
    assert again["text"]["repaid_after"] is None


def test_worse_is_said_as_better_is() -> None:
    base = [np.random.default_rng(i).normal(4, 1, 50) for i in range(3)]
    seeds = [cell("seeds", i, x.tolist()) for i, x in enumerate(base)]
    worse = [cell("text", i, (x + 0.5 + 0.01 * i).tolist()) for i, x in enumerate(base)]
    assert verdict(summarise([*seeds, *worse], ("seeds", "text"))[1], "seeds") == "worse"


def test_pairs_are_of_one_seed() -> None:
    text = [cell("text", i, [2.0 * i, 4.0]) for i in (1, 2)]
    seeds = [cell("seeds", i, [3.0 * i, 4.0]) for i in (0, 1, 2)]
    found = difference(text, seeds)
    assert found is not None
    assert found["pairs"] == 2
    assert found["mean"] == pytest.approx((-1 - 2) / 4 / 2)


def test_draws_of_either_side_count() -> None:
    base = [4.0, 4.5]
    text = [cell("text", i, [x - i for x in base]) | {"draw": i} for i in range(3)]
    seeds = [cell("seeds", i, base) | {"draw": 0} for i in range(3)]
    for one, other in ((text, seeds), (seeds, text)):
        found = difference(one, other)
        assert found is not None
        assert found["figures"] == 3


def test_steps_and_rates_of_cells_that_differ_are_averaged() -> None:
    """Draws by tokens have other numbers of rows, distillations other learned rates."""
    cells = [
        cell("text", i, [4.0]) | {"steps": 10 + i, "learning_rate": 1e-3 * (1 + i)}
        for i in range(3)
    ]
    (row,) = summarise(cells, ("text",))
    assert (row["steps"], row["learning_rate"]) == (11, pytest.approx(2e-3))
    (alike,) = summarise([cell("text", i, [4.0]) for i in range(3)], ("text",))
    assert alike["learning_rate"] == 1e-3
