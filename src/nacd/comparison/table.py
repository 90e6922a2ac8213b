"""From cells to a table: means, paired differences with intervals, gaps recovered; one Parquet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nacd.config.compare import ROWS
from nacd.statistics.intervals import question_bootstrap, t_interval
from nacd.statistics.verdict import Word, read_difference, word
from nacd.store.files import whole

ORDER = (*ROWS[:-1], "full-equal-steps", "full")
"""Rows in a table's order."""
RIVALS = ("random", "seeds", "seeds-shuffled", "less")
"""Rows that every other row is held against."""
UNREAL = (
    "zero-shot",
    "labelled",
    "random-prompts",
    "other-prompts",
    "soft",
    "text",
    "text-last",
    "text-shuffled",
    "full-equal-steps",
    "full",
)
"""Rows that are no choice of as many real rows."""
STARTING = ("seeds", "seeds-shuffled")
"""The real rows that distilling begins with."""
LEVEL = 0.95
Cell = Mapping[str, Any]


def summarise(cells: Sequence[Cell], order: Sequence[str] = ORDER) -> list[dict[str, Any]]:
    """A summary for every (target, budget, row) that has a cell.

    Args:
        cells: results of trainings; those that failed have `failed` in place of figures, those that
            diverged no `report_nll`.
        order: rows in the table's order.
    """
    groups: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["budget"]), {}).setdefault(
            cell["method"], []
        ).append(cell)
    found = []
    for (target, budget), rows in groups.items():
        usable = {method: _usable(own) for method, own in rows.items()}
        for method in sorted(rows, key=lambda m: order.index(m) if m in order else len(order)):
            row = {"target": target, "budget": budget, "method": method}
            found.append(row | _failures(rows[method]) | _figures(method, usable))
    return found


def _usable(cells: Sequence[Cell]) -> list[Cell]:
    """The trainings that a row's figures are of.

    One that failed for another reason is left out; where one diverged, there is no figure: a mean
    over the others would be one of the lucky.
    """
    if any(_diverged(cell) for cell in cells):
        return []
    return [cell for cell in cells if "failed" not in cell]


def _diverged(cell: Cell) -> bool:
    return "report_nll" in cell and cell["report_nll"] is None


def _failures(cells: Sequence[Cell]) -> dict[str, Any]:
    """How many of a row's trainings failed, and why the first did; how many of them diverged."""
    failed = [cell.get("failed", "training diverged") for cell in cells
              if "failed" in cell or _diverged(cell)]  # fmt: skip
    diverged = sum(map(_diverged, cells))
    found: dict[str, Any] = {"failed": len(failed), "why": failed[0]} if failed else {}
    return found | ({"diverged": diverged} if diverged else {})


def _figures(method: str, rows: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """A row's figures, from the usable trainings of all rows; empty: it has none itself."""
    cells = rows[method]
    if not cells:
        return {}
    values = [cell["report_nll"] for cell in cells]
    row: dict[str, Any] = {
        "report_nll": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "interval": t_interval(by_draw(values, [cell.get("draw") for cell in cells])),
        "trainings": len(values),
        "rows": round(statistics.fmean(cell["rows"] for cell in cells)),
        "tokens": round(statistics.fmean(cell["tokens"] for cell in cells)),
        "steps": round(statistics.fmean(cell["steps"] for cell in cells)),
        "learning_rate": float(f"{statistics.fmean(c['learning_rate'] for c in cells):.9g}"),
        "training_seconds": statistics.fmean(cell["training_seconds"] for cell in cells),
    }
    for key in ("tokens_changed", "choosing_seconds", "choosing_flops", "boundaries_kept"):
        known = [cell[key] for cell in cells if cell.get(key) is not None]
        row[key] = statistics.fmean(known) if known else None
    accuracies = [cell["accuracy"]["acc"] for cell in cells if cell.get("accuracy")]
    row["accuracy"] = statistics.fmean(accuracies) if accuracies else None
    row["accuracy_about"] = next((_about(c) for c in cells if c.get("accuracy")), None)
    harms = [cell["elsewhere"] for cell in cells if cell.get("elsewhere")]
    row["elsewhere_nll"] = statistics.fmean(harm["nll"] for harm in harms) if harms else None
    row["elsewhere"] = harms[0]["data"] if harms else None
    row |= _held(method, rows)
    for start in ("zero-shot", "random"):
        row[f"recovered_from_{start}"] = _recovered(row["report_nll"], rows, start)
    row["repaid_after"] = _repaid(row, rows.get("full", ()))
    return row


def _held(method: str, rows: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Differences from the rivals, and from the best real choice of rows.

    Of m sets of which the best would be taken, each has its interval against random rows at
    1 - 0.05 / m, so that all of them hold together.
    """
    cells = rows[method]
    taken = [m for m in rows if m not in (*UNREAL, *STARTING, "random") or m == "text"]
    found: dict[str, Any] = {}
    for rival in RIVALS:
        if rival != method and rival in rows:
            together = rival == "random" and method in taken
            level = 1 - (1 - LEVEL) / len(taken) if together else LEVEL
            found[f"minus_{rival}"] = difference(cells, rows[rival], level)
    best = best_real({m: _nll(own) for m, own in rows.items()})
    if best not in ("", method):
        found |= {"best": best, "minus_best": difference(cells, rows[best])}
    return found


def best_real(figures: Mapping[str, float | None]) -> str:
    """The choice of real rows with the lowest figure (None: has none); empty: there is none."""
    known = {m: x for m, x in figures.items() if m not in UNREAL and x is not None}
    return min(known, key=lambda method: known[method], default="")


def _nll(cells: Sequence[Cell]) -> float | None:
    """Mean test NLL of a row's usable cells; None: there are none."""
    return statistics.fmean(cell["report_nll"] for cell in cells) if cells else None


def _about(cell: Cell) -> dict[str, Any]:
    """What an accuracy depends on."""
    known = {key: cell["accuracy"][key] for key in ("lm_eval", "shots", "n")}
    return known | {"template": cell["template"]}


def _repaid(row: Mapping[str, Any], full: Sequence[Cell]) -> int | None:
    """Trainings after which the time spent choosing is saved again, against the full data.

    None where nothing was spent, or where a training on the full data is not longer.
    """
    if not full or not row["choosing_seconds"]:
        return None
    saved = statistics.fmean(c["training_seconds"] for c in full) - row["training_seconds"]
    return math.ceil(row["choosing_seconds"] / saved) if saved > 0 else None


def difference(
    cells: Sequence[Cell], rival: Sequence[Cell], level: float = LEVEL
) -> dict[str, Any] | None:
    """The paired difference between two rows: training seeds in common, question by question.

    Args:
        cells: trainings of the one row.
        rival: trainings of the other.
        level: of the intervals.

    Returns:
        `mean`; `over_trainings`, half the width of its t-interval, or None, over `figures` (the
        trainings, or the distillations where there are several); `over_questions`, the bootstrap
        interval [low, high] of the mean over those trainings, or None where the cells are an older
        version's; None without a pair.
    """
    others = {cell["seed"]: cell for cell in rival if "failed" not in cell}
    pairs = [(cell, others[cell["seed"]]) for cell in cells if cell["seed"] in others]
    if not pairs:
        return None
    values = [a["report_nll"] - b["report_nll"] for a, b in pairs]
    draws = [(a.get("draw"), b.get("draw")) for a, b in pairs]
    figures = by_draw(values, draws)
    over_rows = None
    if "row_tokens" in pairs[0][0]:
        by_row = np.mean([np.subtract(a["row_nll"], b["row_nll"]) for a, b in pairs], axis=0)
        tokens = np.asarray(pairs[0][0]["row_tokens"])
        over_rows = [*question_bootstrap(by_row, tokens, level=level)]
    return {
        "mean": statistics.fmean(values),
        "over_trainings": t_interval(figures, level),
        "figures": len(figures),
        "over_questions": over_rows,
        "pairs": len(pairs),
    }


def by_draw(values: Sequence[float], draws: Sequence[object]) -> list[float]:
    """What stands independently behind a mean: trainings on the same distillation are averaged.

    Args:
        values: a figure of every training.
        draws: the distillation of each; all the same: every training counts for itself.
    """
    if len(set(draws)) < 2:
        return [*values]
    groups: dict[object, list[float]] = {}
    for value, draw in zip(values, draws, strict=True):
        groups.setdefault(draw, []).append(value)
    return [statistics.fmean(group) for group in groups.values()]


def _recovered(nll: float, rows: Mapping[str, Sequence[Cell]], start: str) -> float | None:
    """Share of the gap from `start` to the full data that a row closes."""
    low, high = _nll(rows.get(start, ())), _nll(rows.get("full", ()))
    if low is None or high is None or not low > high:
        return None
    return (low - nll) / (low - high)


def verdict(row: Mapping[str, Any], rival: str) -> Word:
    """One row against one rival in a word, by the rule of `nacd.statistics.verdict`."""
    found = read_difference(row.get(f"minus_{rival}"))
    return "too few" if found is None else word(found)


def write_parquet(cells: Sequence[Cell], path: Path) -> None:
    """All cells as one Parquet file, a row a training; `row_nll` as lists."""
    keys = sorted({key for cell in cells for key in cell})
    columns = {key: [_plain(cell.get(key)) for cell in cells] for key in keys}
    with whole(path) as partial:
        parquet.write_table(pa.table(columns), partial)


def _plain(value: Any) -> Any:
    """A measurement's own figure, without what it depends on."""
    if not isinstance(value, dict):
        return value
    return value["acc"] if "acc" in value else value["nll"]
