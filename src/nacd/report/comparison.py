"""The page of a comparison: the ladder of every target model and budget, and what choosing cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyarrow import parquet

from nacd.comparison.table import RIVALS, notes, verdict
from nacd.errors import UserError
from nacd.files import read_json
from nacd.report import charts
from nacd.report.charts import Chart
from nacd.report.facts import signed
from nacd.report.rungs import Rung
from nacd.run import settings

LABELS = {
    "random": "random rows",
    "best-of": "best of draws",
    "longest": "longest responses",
    "kcenter": "k-center",
    "bm25": "BM25",
    "rds+": "RDS+",
    "less": "LESS",
    "seeds": "seeds untouched",
    "seeds-shuffled": "seeds, shuffled",
    "random-prompts": "seeds, random prompts",
    "other-prompts": "seeds, others' prompts",
    "soft": "NACD soft",
    "text": "NACD text",
    "text-shuffled": "NACD text, shuffled",
    "full-equal-steps": "full, equal steps",
}
WORDS = {
    "better": "is better than",
    "worse": "is worse than",
    "too few": "has too few trainings to be judged against",
}
RIVAL_NAMES = {"seeds": "its untouched seeds", "random": "random rows", "less": "LESS"}


@dataclass(frozen=True)
class Block:
    """One target model at one budget."""

    target: str
    budget: str
    chart: Chart | None
    """None where nothing was trained."""
    rows: Sequence[tuple[Rung, Mapping[str, Any]]]
    failed: list[tuple[str, str]]
    """Rows of the table that have no figure, and why."""
    rivals: list[str]
    """Rows that the others are held against here, beside the seeds."""
    sentence: str
    elsewhere: str | None
    """Name of other data that the models were measured on."""
    notes: list[str]
    """What the table has no column for."""


def comparison_context(folder: Path) -> dict[str, Any]:
    """Everything that the page of a comparison shows.

    Raises:
        UserError: no row of the comparison has been made yet.
    """
    results, cells = folder / "results.json", folder / "results.parquet"
    if not (results.is_file() and cells.is_file()):
        raise UserError(
            f"{folder}: this comparison has no results yet; run its `nacd compare` command again."
        )
    found = read_json(results)
    table = found["table"]
    values: dict[tuple[str, str, str], list[float]] = {}
    for cell in parquet.read_table(cells).to_pylist():
        if cell.get("report_nll") is not None:
            key = (cell["target"], cell["budget"], cell["method"])
            values.setdefault(key, []).append(cell["report_nll"])
    config = settings(folder)
    overlap = folder / "overlap.json"
    blocks = [*_blocks(table, values)]
    return {
        "title": f"{folder.resolve().name}: NACD comparison",
        "name": folder.resolve().name,
        "headline": blocks[0].sentence if blocks else "Nothing was compared.",
        "blocks": blocks,
        "sizes": found["sizes"],
        "trainings": found.get("trainings", {"done": 0, "of": 0}),
        "data": Path(config["data"]["data"]).name,
        "overlap": read_json(overlap)["rows"] if overlap.is_file() else [],
        "command": shlex.join(
            ["nacd", "compare", "--config", str(folder / "run.yaml"), "--out", f"{folder}-again"]
        ),
        "figures": [block.chart.figure() for block in blocks if block.chart],
    }


def _blocks(
    table: list[dict[str, Any]], values: Mapping[tuple[str, str, str], list[float]]
) -> Iterator[Block]:
    groups = dict.fromkeys((row["target"], row["budget"]) for row in table)
    for number, (target, budget) in enumerate(groups):
        own = [row for row in table if (row["target"], row["budget"]) == (target, budget)]
        made = [row for row in own if "report_nll" in row]
        rows = [(_rung(row, values[target, budget, row["method"]]), row) for row in made]
        chart = (
            replace(charts.ladder([r for r, _ in rows]), id=f"ladder-{number}") if rows else None
        )
        yield Block(
            target=Path(target).name,
            budget=budget,
            chart=chart,
            rows=rows,
            failed=[
                (LABELS.get(str(row["method"]), str(row["method"])), row["why"])
                for row in own
                if "failed" in row
            ],
            rivals=[r for r in RIVALS[1:] if any(row["method"] == r for row in made)],
            sentence=_sentence(Path(target).name, budget, made),
            elsewhere=next((Path(row["elsewhere"]).name for row in made if row["elsewhere"]), None),
            notes=[note[0].upper() + note[1:] + "." for note in notes(made, LABELS)],
        )


def _rung(row: Mapping[str, Any], values: list[float]) -> Rung:
    against, method = row.get("minus_seeds") or {}, str(row["method"])
    return Rung(
        method=method,
        label=LABELS.get(method, method),
        values=tuple(values),
        mean=row["report_nll"],
        half=row["interval"],
        rows=row["rows"],
        tokens=row["tokens"],
        steps=row["steps"],
        changed=row["tokens_changed"],
        minus_seeds=against.get("mean"),
        minus_seeds_half=against.get("over_trainings"),
        seconds=row["training_seconds"],
        closed=row["recovered_from_zero-shot"],
    )


def _sentence(target: str, budget: str, rows: list[dict[str, Any]]) -> str:
    """NACD text against its rivals, in one sentence; without it, the best row."""
    size = f"{budget} of the rows" if budget.endswith("%") else f"{budget} rows"
    if not rows:
        return f"{target}, {size}: nothing could be trained."
    text = next((row for row in rows if row["method"] == "text"), None)
    if text is None:
        best = min(rows, key=lambda row: row["report_nll"])
        name = LABELS.get(best["method"], best["method"])
        return f"{target}, {size}: {name} has the lowest report NLL, {best['report_nll']:.3f}."
    parts = []
    for rival in RIVALS:
        found = text.get(f"minus_{rival}")
        if found:
            word = WORDS.get(verdict(text, rival), "cannot be told from")
            figures = signed(found["mean"], found["over_trainings"])
            parts.append(f"{word} {RIVAL_NAMES[rival]} ({figures})")
    return f"{target}, {size}: NACD text {', '.join(parts) or 'was compared with nothing'}."
