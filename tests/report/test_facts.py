"""What a reader is told to mind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from made_run import make_run
from nacd.report import facts
from nacd.report.folder import read_run
from nacd.report.rungs import rungs


@pytest.mark.parametrize(
    ("means", "told"),
    [
        # the text clearly below random rows; shuffled, clearly below the seeds shuffled
        ({"random": 2.5, "text": 2.3, "seeds-shuffled": 2.45, "text-shuffled": 2.3}, set()),
        ({"random": 2.3, "text": 2.4}, {"Random rows do as well."}),
        ({"random": 2.42, "text": 2.40}, {"Random rows do as well."}),  # within the intervals
        (
            {"random": 2.5, "text": 2.3, "seeds-shuffled": 2.33, "text-shuffled": 2.32},
            {"Bound to their order."},
        ),
        # nothing gained in their own order either: nothing to be bound to it
        ({"random": 2.5, "text": 2.37, "seeds-shuffled": 2.33, "text-shuffled": 2.32}, set()),
    ],
)
def test_a_gain_is_held_against_random_rows_and_another_order(
    means: dict[str, float], told: set[str], tmp_path: Path
) -> None:
    run = read_run(make_run(tmp_path / "run"))
    base = rungs(run)[0]
    table = [
        replace(
            base,
            method=name,
            mean=mean,
            half=0.04,
            values=(mean,) * 5,
            minus_seeds=mean - 2.4,
            minus_seeds_half=0.05,
        )
        for name, mean in means.items()
    ]
    known = {"Random rows do as well.", "Bound to their order."}
    said = dict(facts.warnings(run, table))
    assert said.keys() & known == told
    for name in told:
        assert "\N{PLUS-MINUS SIGN} 0.040" in said[name]
