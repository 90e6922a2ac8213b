"""From cells to a table: means, paired differences with intervals, gaps recovered; one Parquet."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nacd.statistics.intervals import question_bootstrap, t_interval
from nacd.statistics.verdict import Word, read_difference, word
from nacd.store.files import whole
from nacd.terminal.units import operations

RIVALS = ("seeds", "random", "less")
"""Rows that every other row is held against."""
UNREAL = (
    "zero-shot",
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


def summarise(cells: Sequence[Cell], order: Sequence[str]) -> list[dict[str, Any]]:
    """A summary for every (target, budget, row) that has a cell.

    Args:
        cells: results of trainings, failed ones with `failed` in place of figures.
        order: rows in the table's order.
    """
    groups: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["budget"]), {}).setdefault(
            cell["method"], []
        ).append(cell)
    return [
        _row(target, budget, method, rows)
        for (target, budget), rows in groups.items()
        for method in sorted(rows, key=order.index)
    ]


def _row(
    target: str, budget: str, method: str, rows: Mapping[str, Sequence[Cell]]
) -> dict[str, Any]:
    cells = [cell for cell in rows[method] if "failed" not in cell]
    failed = [cell["failed"] for cell in rows[method] if "failed" in cell]
    row: dict[str, Any] = {"target": target, "budget": budget, "method": method}
    if failed:
        row |= {"failed": len(failed), "why": failed[0]}
    if not cells:
        return row
    values = [cell["report_nll"] for cell in cells]
    row |= {
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
    row |= _held(method, cells, rows)
    for start in ("zero-shot", "random"):
        row[f"recovered_from_{start}"] = _recovered(row["report_nll"], rows, start)
    row["repaid_after"] = _repaid(row, [c for c in rows.get("full", ()) if "failed" not in c])
    return row


def _held(method: str, cells: Sequence[Cell], rows: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Differences from the rivals, and from the best real choice of rows.

    Of m sets of which the best would be taken, each has its interval against random rows at
    1 - 0.05 / m, so that all of them hold together.
    """
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
    """Mean test NLL of a row's cells; None: all of them failed."""
    known = [cell["report_nll"] for cell in cells if "failed" not in cell]
    return statistics.fmean(known) if known else None


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
        interval [low, high] of the mean over those trainings; None without a pair.
    """
    others = {cell["seed"]: cell for cell in rival if "failed" not in cell}
    pairs = [(cell, others[cell["seed"]]) for cell in cells if cell["seed"] in others]
    if not pairs:
        return None
    values = [a["report_nll"] - b["report_nll"] for a, b in pairs]
    draws = [(a.get("draw"), b.get("draw")) for a, b in pairs]
    figures = by_draw(values, draws)
    by_question = np.mean([np.subtract(a["row_nll"], b["row_nll"]) for a, b in pairs], axis=0)
    tokens = np.asarray(pairs[0][0]["row_tokens"])
    low, high = question_bootstrap(by_question, tokens, level=level)
    return {
        "mean": statistics.fmean(values),
        "over_trainings": t_interval(figures, level),
        "figures": len(figures),
        "over_questions": [low, high],
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


def lines(summary: Sequence[Mapping[str, Any]], rival: str = "") -> list[str]:
    """The table of every target and budget, at most 80 columns wide.

    Args:
        summary: its rows.
        rival: what the others are held against; empty: random rows, or else the starting rows.
    """
    rival = rival or ("random" if any("minus_random" in row for row in summary) else "seeds")
    out: list[str] = []
    last = None
    for row in summary:
        if (row["target"], row["budget"]) != last:
            last = (row["target"], row["budget"])
            out += [] if not out else [""]
            out.append(f"{Path(row['target']).name}, budget {row['budget']}")
            asked = any(other.get("accuracy") is not None for other in summary)
            head = (
                f"{'':<17}{'NLL':>7} {'sd':>6} {'vs ' + rival:>15} {'':<15}"
                f"{'tokens':>7} {'n':>2}" + (f" {'acc':>5}" if asked else "")
            )
            out += [head, "-" * len(head)]
        if "report_nll" not in row:
            out.append(f"{row['method']:<17}failed: {row['why']}"[:80])
            continue
        sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
        found, against, word = row.get(f"minus_{rival}"), "", ""
        if found:
            against = f"{found['mean']:+.3f}"
            if found["over_trainings"] is not None:
                against += f" ±{found['over_trainings']:.3f}"
            word = verdict(row, rival)
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        out.append(
            f"{row['method']:<17}{row['report_nll']:>7.3f} {sd:>6} {against:>15} {word:<15}"
            f"{row['tokens']:>7} {row['trainings']:>2} {accuracy:>5}".rstrip()
        )
        if "failed" in row:
            out.append(f"  {row['failed']} of its trainings failed: {row['why']}"[:80])
    blocks: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in summary:
        blocks.setdefault((row["target"], row["budget"]), []).append(row)
    for (target, budget), rows in blocks.items():
        for note in (_elsewhere(rows), *notes(rows)):
            if note:
                out += ["", *textwrap.wrap(f"{Path(target).name}, budget {budget}: {note}", 80)]
    return out


def _elsewhere(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows' NLL on other data; empty where there is none."""
    data = next((row["elsewhere"] for row in rows if row.get("elsewhere")), "")
    figures = _each(rows, "elsewhere_nll", "{:.3f}".format)
    return f"NLL on {Path(data).name}: {figures}" if figures else ""


def notes(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str] | None = None) -> list[str]:
    """What the table has no column for, a sentence each.

    Args:
        rows: the summaries of one target and budget.
        labels: names for the rows, where they have others than their own.
    """
    found = []
    about = next((row["accuracy_about"] for row in rows if row.get("accuracy_about")), None)
    if about:
        found.append(
            f"accuracy by lm-eval {about['lm_eval']}: {about['n']} questions, {about['shots']} "
            f"shots, template {about['template']}"
        )
    own = [row for row in rows if row["method"] not in ("random", "full", "zero-shot")]
    in_order = [row for row in own if not row["method"].endswith("-shuffled")]
    share = "{:.0%}".format
    for key, form, words in (
        ("recovered_from_random", share, "share of the way from random rows to the full data"),
        ("boundaries_kept", share, "token boundaries that this model's tokenizer keeps"),
        ("repaid_after", str, "trainings after which the time to choose is repaid"),
        ("choosing_flops", operations, "floating-point operations spent on choosing"),
    ):
        # the same rows in another order keep the same boundaries, and took as long to choose
        shown = in_order
        if key == "recovered_from_random":  # a row that is worse than random ones is on no way
            shown = [row for row in own if (row.get(key) or 0) >= 0]
        if key == "choosing_flops":  # no model was asked
            shown = [row for row in in_order if row.get(key)]
        if figures := _each(shown, key, form, labels):
            found.append(f"{words}: {figures}")
    return found


def _each(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    form: Callable[[Any], str],
    labels: Mapping[str, str] | None = None,
) -> str:
    """One figure of every row that has it, with the row's name."""
    return ", ".join(
        f"{(labels or {}).get(row['method'], row['method'])} {form(row[key])}"
        for row in rows
        if row.get(key) is not None
    )


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
