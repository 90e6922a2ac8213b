"""The rows of a results table as pages show them, of a run or of a comparison.

One rule makes their figures, `nacd.comparison.table.summarise`; a run that has not ended, and one
of an older version, is summarised from the trainings that its folder keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nacd.comparison.decision import LABELS
from nacd.comparison.table import summarise
from nacd.statistics.intervals import t_interval
from nacd.statistics.verdict import Difference, read_difference
from nacd.store.folder import Run

HELD = ("random", "best", "seeds", "seeds-shuffled")
"""What a page shows differences from."""


@dataclass(frozen=True)
class Result:
    """One row of a results table."""

    method: str
    label: str
    values: tuple[float, ...]
    """Test NLL of every training, nats per token."""
    mean: float
    half: float | None
    """Half the 95 % interval; None: one training."""
    rows: int
    tokens: int
    steps: int
    changed: float | None
    """Share of the learnable tokens that differ from the starting rows'."""
    minus: Mapping[str, Difference]
    """Its paired differences by rival: `random`, `best`, `seeds`, `seeds-shuffled`."""
    singles: tuple[float, ...]
    """The same of every training, from random rows, or else from the starting rows."""
    seconds: float
    """Mean seconds of a training."""
    closed: float | None
    """Share of the way from zero-shot to full data; None where one of the two is missing."""


Values = Mapping[str, Mapping[int, float]]
"""Row -> training seed -> test NLL."""


def results(table: Sequence[Mapping[str, Any]], values: Values) -> list[Result]:
    """The rows of one target and budget that have a figure.

    Args:
        table: the rows, as `summarise` makes them.
        values: the trainings behind them.
    """
    base = next((values[m] for m in ("random", "seeds") if values.get(m)), {})
    found = []
    for row in table:
        method, nll = str(row["method"]), row.get("report_nll")
        if nll is None:
            continue
        held = {rival: read_difference(row.get(f"minus_{rival}")) for rival in HELD}
        own = values.get(method, {})
        same = own is base or method == "zero-shot"
        half = row["interval"] if "interval" in row else t_interval([*own.values()])
        ends = method in ("zero-shot", "full")
        found.append(
            Result(
                method=method,
                label=row.get("label", LABELS.get(method, method)),
                values=tuple(own.values()) or (nll,),
                mean=nll,
                half=half,
                rows=row["rows"],
                tokens=row["tokens"],
                steps=row["steps"],
                changed=row.get("tokens_changed"),
                minus={rival: d for rival, d in held.items() if d and method != "zero-shot"},
                singles=() if same else tuple(x - base[s] for s, x in own.items() if s in base),
                seconds=row["training_seconds"],
                closed=None if ends else row.get("recovered_from_zero-shot"),
            )
        )
    return found


def of_run(run: Run) -> list[Result]:
    """The results table of a run; before it has ended, what has been measured so far.

    A row of which a training diverged has no place in it; see `diverged`.
    """
    values = {
        method: {cell["seed"]: cell["report_nll"] for cell in own}
        for method, own in _cells(run).items()
    }
    return results(summary_of(run), values)


def summary_of(run: Run) -> list[dict[str, Any]]:
    """The results table of a run as a comparison of one target and budget has it."""
    kept: Mapping[str, Any] = {} if run.results is None else run.results
    table = {row["method"]: row for row in kept.get("table", ())}
    of = {"target": str(run.setting("model.model")), "budget": str(run.setting("budget"))}
    made = summarise([cell | of for own in _cells(run).values() for cell in own])
    rows = {row["method"]: row for row in made}
    for method in diverged(run):
        rows[method] = of | {"method": method, "failed": 1, "why": "training diverged"}
    for method, row in table.items():
        known = {k: x for k, x in row.items() if not k.startswith("minus_")}
        held = kept.get("differences", {}).get(method, {})
        minus = {f"minus_{rival}": found for rival, found in held.items() if found}
        rows[method] = of | _ABSENT | rows.get(method, {}) | known | minus
    order = [*table, *(method for method in rows if method not in table)]
    return [{"label": LABELS.get(m, m)} | rows[m] for m in order]


_ABSENT = {"accuracy": None}
"""What a table of an older version lacks."""


def _cells(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The trainings behind the table; none of a row that has no figure."""
    table = [] if run.results is None else run.results["table"]
    counts = {row["method"]: row["trainings"] for row in table}  # fewer were asked for at last
    lost = diverged(run)
    return {m: own[: counts.get(m)] for m, own in run.cells.items() if m not in lost}


def diverged(run: Run) -> dict[str, str]:
    """Name and label of every row of which a training diverged."""
    table = [] if run.results is None else run.results["table"]
    labels = {row["method"]: row["label"] for row in table}
    lost = [row["method"] for row in table if row.get("report_nll") is None]
    for method, cells in run.cells.items():
        if method not in labels and any(cell["report_nll"] is None for cell in cells):
            lost.append(method)
    return {method: labels.get(method, method) for method in lost}
