"""What a reader is told to mind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from made_run import make_run
from nacd.report import charts, facts
from nacd.report.folder import read_run
from nacd.report.page import ReportConfig, write_report
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


def test_a_page_bears_trainings_that_diverged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    for row in results["table"]:
        if row["method"] in ("text", "seeds"):
            row["report_nll"] = None
    (folder / "results.json").write_text(json.dumps(results))
    metrics = folder / "distill" / "metrics.jsonl"
    looks = [json.loads(line) for line in metrics.read_text().splitlines()]
    for look in looks:
        look |= dict.fromkeys(("objective", "development_soft", "soft_to_text_gap"))
    metrics.write_text("".join(json.dumps(look) + "\n" for look in looks))
    run = read_run(folder)
    ladder = rungs(run)
    assert {"text", "seeds"} & {rung.method for rung in ladder} == set()
    assert all(rung.minus_seeds is None for rung in ladder)
    assert "row text" in dict(facts.warnings(run, ladder))["Training diverged."]
    assert "Soft-to-text gap" not in [name for name, _, _ in facts.tiles(run, ladder)]
    page = write_report(ReportConfig(folder)).read_text()
    assert "Training diverged." in page
    (folder / "results.json").unlink()  # killed while the table was made
    cell = next(folder.glob("ladder/text-*.json"))
    cell.write_text(json.dumps(json.loads(cell.read_text()) | {"report_nll": None}))
    assert "text" not in {rung.method for rung in rungs(read_run(folder))}
    assert write_report(ReportConfig(folder)).is_file()


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("train-loss", "Loss on other training rows"),
        ("target-loss", "Loss on target rows"),
        ("trajectory", "Distance to the expert's"),
    ],
)
def test_the_objective_is_called_what_it_is(objective: str, said: str, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    run = replace(
        run, config={**run.config, "outer": {**run.config["outer"], "objective": objective}}
    )
    (chart,) = [chart for chart in charts.curves(run) if chart.id == "objective"]
    assert chart.caption.startswith(said)
