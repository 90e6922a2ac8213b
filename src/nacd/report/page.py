"""`nacd report`: a run folder as one HTML file that needs nothing else.

`context` gathers what the page shows, `render` writes it into a template. Everything is inside the
file: style, script, figures, and plotly.js, which draws them; where plotly is not installed, the
page says how to get its charts. The page's own policy (a Content-Security-Policy in its head)
forbids the browser every request. Text of data rows is data: the templates escape it, and figures,
which alone travel as JSON, hold none of it.

A comparison, a check and a choice of rows have templates and contexts of their own, see
`nacd.report.comparison`, `nacd.report.check` and `nacd.report.chosen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nacd.comparison.decision import LABELS, called
from nacd.comparison.results import of_run
from nacd.config.commands import ReportConfig
from nacd.report import charts, facts, trajectory
from nacd.report.check import check_context, commands, interval, unbroken
from nacd.report.chosen import chosen_context
from nacd.report.comparison import comparison_context
from nacd.report.repeat import command
from nacd.report.rows import shown_rows
from nacd.statistics.verdict import RULE
from nacd.store.extras import install, installed
from nacd.store.files import write_text
from nacd.store.folder import Run, is_check, is_comparison, is_selection, read_run

LEAST = 0.1
"""Seconds of the shortest stage that is shown."""


def write_report(config: ReportConfig) -> Path:
    """Write the page of a run.

    Returns:
        Its path.

    Raises:
        UserError: no run folder, a damaged file in it, or a place that cannot be written.
    """
    path = config.run / "report.html" if config.out is None else config.out
    if is_comparison(config.run):
        page = render("compare.html.jinja", comparison_context(config.run))
    elif is_check(config.run):
        page = render("check.html.jinja", check_context(config.run))
    elif is_selection(config.run):
        page = render("select.html.jinja", chosen_context(config.run))
    else:
        page = render("distill.html.jinja", context(read_run(config.run)))
    write_text(path, page)
    return path


def context(run: Run) -> dict[str, Any]:
    """Everything that the page of a distillation shows."""
    table = of_run(run)
    drawn = charts.table(table)
    curves = charts.curves(run)
    experts = trajectory.chart(run)
    rows, left_out = shown_rows(run)
    return {
        "title": f"{run.name}: NACD report",
        "run": run,
        "verdict": facts.verdict(run),
        "lead": facts.lead(run, table),
        "tiles": facts.tiles(run, table),
        "table": table,
        "rivals": [
            (key, name)
            for key, name in (("random", called("random")), ("seeds", LABELS["seeds"]))
            if any(key in row.minus for row in table)
        ],
        "drawn": drawn,
        "curves": curves,
        "experts": experts,
        "segments": trajectory.describe(trajectory.matched(run), len(run.experts)),
        "rows": rows,
        "rows_left_out": left_out,
        "rows_beside_seeds": bool(run.rows),
        "warnings": [*facts.warnings(run, table)],
        "overlap": facts.overlap(run),
        "stages": stages(run),
        "setup": facts.setup(run),
        "command": command(run),
        "figures": [c.figure() for c in (drawn, *curves, experts) if c],
    }


def stages(run: Run) -> list[dict[str, Any]]:
    """Seconds and peak memory by stage, each with its share of the longest.

    Folders without `stages.json` have the seconds that the metrics and the trainings kept.
    """
    if run.stages is not None:
        found = [dict(stage) for stage in run.stages["stages"] if stage["seconds"] >= LEAST]
    else:
        trainings = [cell["training_seconds"] for own in run.cells.values() for cell in own]
        known = {
            "learning": sum(row.get("seconds", 0.0) for row in run.metrics),
            "the table's trainings": sum(trainings),
        }
        found = [
            {"name": name, "seconds": seconds, "peak_bytes": None, "device_peak_bytes": None}
            for name, seconds in known.items()
            if seconds
        ]
    longest = max((stage["seconds"] for stage in found), default=0.0) or 1.0
    return [stage | {"share": stage["seconds"] / longest} for stage in found]


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from a template of this package; every value is escaped.

    What UTF-8 cannot hold (half of a surrogate pair) becomes a question mark.
    """
    inside = {
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "plotly": _plotly() if installed("plotly") else "",
        "plotly_comes_by": install("plotly"),
        "version": version("nacd"),
        "rule": RULE,
    }
    text = _environment().get_template(template).render(inside | dict(values))
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nacd.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": facts.number,
        "signed": facts.signed,
        "percent": facts.percent,
        "distance": facts.distance,
        "duration": facts.duration,
        "interval": interval,
        "ends": facts.ends,
        "unbroken": unbroken,
        "commands": commands,
        "gigabytes": lambda size: f"{size / 1e9:.2f} GB",
    }
    return environment


def _asset(name: str) -> Markup:
    return Markup(files("nacd.report").joinpath("templates", name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    """plotly.js, safe inside a script element."""
    import plotly.offline

    return Markup(plotly.offline.get_plotlyjs().replace("</script", "<\\/script"))
