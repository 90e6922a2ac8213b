"""The page of a comparison: the table of every target model and budget, and what choosing cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyarrow import parquet

from nacd.comparison.decision import LABELS, called, decisions, warnings
from nacd.comparison.results import Result, Values, results
from nacd.comparison.table import best_real
from nacd.comparison.text import notes
from nacd.errors import UserError
from nacd.report import charts, facts
from nacd.report.charts import Chart
from nacd.statistics.verdict import read_difference
from nacd.store.files import read_json
from nacd.store.run import settings
from nacd.terminal.units import operations


@dataclass(frozen=True)
class Block:
    """One target model at one budget."""

    target: str
    budget: str
    chart: Chart | None
    """None where nothing was trained."""
    rows: Sequence[tuple[Result, Mapping[str, Any]]]
    failed: list[tuple[str, str]]
    """Rows of the table that have no figure, and why."""
    rivals: list[tuple[str, str]]
    """What the rows are held against here: key and name."""
    sentence: str
    """What to do."""
    elsewhere: str | None
    """Name of other data that the models were measured on."""
    notes: list[str]
    """What the table has no column for."""


def comparison_context(folder: Path) -> dict[str, Any]:
    """Everything that the page of a comparison shows.

    Raises:
        UserError: no row of the comparison has been made yet.
    """
    file, cells = folder / "results.json", folder / "results.parquet"
    if not (file.is_file() and cells.is_file()):
        raise UserError(
            f"{folder}: this comparison has no results yet; run its `nacd compare` command again."
        )
    found = read_json(file)
    table = found["table"]
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for cell in parquet.read_table(cells).to_pylist():
        if cell.get("report_nll") is not None:
            block = values.setdefault((cell["target"], cell["budget"]), {})
            block.setdefault(cell["method"], {})[cell["seed"]] = cell["report_nll"]
    config = settings(folder)
    overlap = folder / "overlap.json"
    blocks = [*_blocks(table, values)]
    first = [row for row in table if row["target"] == table[0]["target"]
             and row["budget"] == table[0]["budget"]]  # fmt: skip
    return {
        "title": f"{folder.resolve().name}: NACD comparison",
        "name": folder.resolve().name,
        "headline": blocks[0].sentence if blocks else "Nothing was compared.",
        "tiles": _tiles(first, found["sizes"]),
        "blocks": blocks,
        "warnings": [*warnings(table, found["sizes"], config)],
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
    table: list[dict[str, Any]], values: Mapping[tuple[str, str], Values]
) -> Iterator[Block]:
    for number, (target, budget, said) in enumerate(decisions(table)):
        own = [row for row in table if (row["target"], row["budget"]) == (target, budget)]
        made = [row for row in own if "report_nll" in row]
        shown = results(made, values.get((target, budget), {}))
        best = best_real({row["method"]: row["report_nll"] for row in made})
        chart = charts.table(shown, best)
        yield Block(
            target=Path(target).name,
            budget=budget,
            chart=chart and replace(chart, id=f"results-{number}"),
            rows=[*zip(shown, made, strict=True)],
            failed=[
                (LABELS.get(str(row["method"]), str(row["method"])), row["why"])
                for row in own
                if "failed" in row
            ],
            rivals=_rivals(made, best),
            sentence=said,
            elsewhere=next((Path(row["elsewhere"]).name for row in made if row["elsewhere"]), None),
            notes=[note[0].upper() + note[1:] + "." for note in notes(made, LABELS)],
        )


def _rivals(made: Sequence[Mapping[str, Any]], best: str) -> list[tuple[str, str]]:
    """The columns of differences: random rows, the best real choice, the starting rows."""
    held = {key for row in made for key in row if key.startswith("minus_") and row[key]}
    names = {"random": LABELS["random"], "best": LABELS.get(best, best), "seeds": LABELS["seeds"]}
    same = best in names
    return [(k, n) for k, n in names.items() if f"minus_{k}" in held and not (same and k == "best")]


def _tiles(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> list[facts.Tile]:
    """The few figures at the top, of the first target and budget: those of the distilled rows.

    Without these, of the best choice.
    """
    known = {str(row["method"]): row for row in rows if "report_nll" in row}
    real = best_real({method: row["report_nll"] for method, row in known.items()})
    own = "text" if "text" in known else real
    if not own or own == "random":
        return []
    row = known[own]
    held = {name: read_difference(row.get(f"minus_{name}")) for name in ("random", "best", "seeds")}
    tiles = [facts.against("random rows", held["random"])]
    if held["best"] and row["best"] != "random":
        tiles.append(facts.against(f"the best real rows: {called(row['best'])}", held["best"]))
    elif held["seeds"]:
        tiles.append(facts.against(called("seeds"), held["seeds"]))
    full = known.get("full", {}).get("tokens")
    tiles.append(facts.saved(row["rows"], sizes["train"], row["tokens"], full))
    if row["choosing_seconds"] is not None:
        done = "Distilling took" if own == "text" else "Choosing took"
        work = operations(row["choosing_flops"]) if row["choosing_flops"] else ""
        tiles.append((done, facts.duration(row["choosing_seconds"]), work))
    return tiles
