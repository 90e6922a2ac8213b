"""The table's rows, from the single trainings' results: means, and intervals over the trainings.

The t-interval is of the mean over training seeds; one training has none.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nacd.comparison.decision import LABELS
from nacd.statistics.intervals import t_interval
from nacd.statistics.verdict import Difference, read_difference
from nacd.store.folder import Run

RIVALS = ("random", "seeds", "seeds-shuffled")


@dataclass(frozen=True)
class Rung:
    """One row of the results table."""

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
    """Its paired differences by rival: `random`, `seeds`, `seeds-shuffled`, or `best`."""
    singles: tuple[float, ...]
    """The same of every training, from random rows, or else from the starting rows."""
    seconds: float
    """Mean seconds of a training."""
    closed: float | None
    """Share of the way from zero-shot to full data; None where one of the two is missing."""


def rungs(run: Run) -> list[Rung]:
    """The results table in its order; before a run has ended, what has been measured so far.

    A row of which a training diverged has no place in it; see `diverged`.
    """
    table = run.results["table"] if run.results is not None else []
    lost = diverged(run)
    known = {row["method"]: row for row in table if row["method"] not in lost}
    order = [*known, *(m for m in run.cells if m not in known and m not in lost)]
    means = {m: _mean(run.cells.get(m, []), known.get(m)) for m in order}
    rivals = {m: run.cells[m] for m in RIVALS if m in run.cells and m not in lost}
    kept = {} if run.results is None else run.results.get("differences", {})
    found = []
    for method in order:
        cells, row = run.cells.get(method, []), known.get(method, {})
        count = row.get("trainings", len(cells))
        values = tuple(cell["report_nll"] for cell in cells[:count]) or (means[method],)
        first = cells[0] if cells else row
        against = {
            rival: [a - b["report_nll"] for a, b in zip(values, others, strict=False)]
            for rival, others in rivals.items()
            if cells and method not in (rival, "zero-shot")
        }
        found.append(
            Rung(
                method=method,
                label=row.get("label", LABELS.get(method, method)),
                values=values,
                mean=means[method],
                half=t_interval(values),
                rows=row.get("rows", first["rows"]),
                tokens=row.get("tokens", first["tokens"]),
                steps=first["steps"],
                changed=row.get("tokens_changed"),
                minus={
                    rival: read_difference(kept.get(method, {}).get(rival)) or _of(pairs)
                    for rival, pairs in against.items()
                },
                singles=tuple(next(iter(against.values()), ())),
                seconds=row.get("training_seconds", first.get("training_seconds", 0.0)),
                closed=_closed(means, method),
            )
        )
    return found


def _of(pairs: Sequence[float]) -> Difference:
    """A difference without the test rows' own figures, which older folders do not keep."""
    return Difference(statistics.fmean(pairs), t_interval(pairs), figures=len(pairs))


def diverged(run: Run) -> dict[str, str]:
    """Name and label of every row of which a training diverged."""
    table = [] if run.results is None else run.results["table"]
    labels = {row["method"]: row["label"] for row in table}
    lost = [row["method"] for row in table if row["report_nll"] is None]
    for method, cells in run.cells.items():
        if method not in labels and any(cell["report_nll"] is None for cell in cells):
            lost.append(method)
    return {method: labels.get(method, method) for method in lost}


def _mean(cells: Sequence[dict[str, Any]], row: dict[str, Any] | None) -> float:
    if row is not None:
        return row["report_nll"]
    return statistics.fmean(cell["report_nll"] for cell in cells)


def _closed(means: dict[str, float], method: str) -> float | None:
    if "zero-shot" not in means or "full" not in means or method in ("zero-shot", "full"):
        return None
    way = means["zero-shot"] - means["full"]
    return (means["zero-shot"] - means[method]) / way if way > 0 else None
