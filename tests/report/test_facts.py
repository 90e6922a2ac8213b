"""What a reader is told to mind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from made_run import make_run
from nacd.comparison.results import of_run
from nacd.report import charts, facts
from nacd.report.charts import Point
from nacd.report.page import ReportConfig, write_report
from nacd.statistics.verdict import Difference
from nacd.store.folder import read_run


def told(mean: float) -> Difference:
    return Difference(mean, 0.05, (mean - 0.05, mean + 0.05), 5)


@pytest.mark.parametrize(
    ("text", "shuffled", "bound"),
    [
        (-0.1, -0.1, False),
        (-0.1, -0.02, True),  # in another order nothing is known to be gained
        (-0.02, -0.02, False),  # nothing gained in their own order either
    ],
)
def test_a_gain_is_held_against_another_order(
    text: float, shuffled: float, bound: bool, tmp_path: Path
) -> None:
    run = read_run(make_run(tmp_path / "run"))
    base = of_run(run)[0]
    table = [
        replace(base, method="text", minus={"seeds": told(text)}),
        replace(base, method="text-shuffled", minus={"seeds-shuffled": told(shuffled)}),
        replace(base, method="seeds-shuffled", minus={}),
    ]
    said = dict(facts.warnings(run, table))
    assert ("Bound to their order." in said) == bound
    assert "In the order of the file alone." not in said


def test_the_chart_is_made_for_what_decides() -> None:
    """A difference of 0.01 is to be seen whatever else is in the table."""
    near = [Point("random rows", 0.0, near=True), Point("text", -0.01, -0.9, 0.9, near=True)]
    far = [Point("full", -1.5), Point("random prompts", 0.8, 0.7, 0.9), Point("LESS", 0.015)]
    chart = charts.differences([*near, *far])
    low, high = chart.layout["xaxis"]["range"]
    assert 0.01 / (high - low) > 1 / 8
    drawn = {trace["y"][0] for trace in chart.data[1:]}
    assert drawn == {"random rows", "text", "LESS"}
    edges = {note["text"].strip() for note in chart.layout["annotations"]}
    assert edges == {"\N{LEFTWARDS ARROW} \N{MINUS SIGN}1.500", "+0.800 \N{RIGHTWARDS ARROW}"}


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
    table = of_run(run)
    assert {"text", "seeds"} & {row.method for row in table} == set()
    assert all("seeds" not in row.minus for row in table)
    assert "row text" in dict(facts.warnings(run, table))["Training diverged."]
    assert not [name for name, _, _ in facts.tiles(run, table) if name.startswith("Against")]
    page = write_report(ReportConfig(folder)).read_text()
    assert "Training diverged." in page
    (folder / "results.json").unlink()  # killed while the table was made
    cell = next(folder.glob("ladder/text-*.json"))
    cell.write_text(json.dumps(json.loads(cell.read_text()) | {"report_nll": None}))
    assert "text" not in {row.method for row in of_run(read_run(folder))}
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
