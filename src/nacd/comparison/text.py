"""A results table on a terminal, at most 80 columns wide, and what it has no column for."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nacd.comparison.table import verdict
from nacd.terminal.units import operations


def lines(summary: Sequence[Mapping[str, Any]], rival: str = "") -> list[str]:
    """The table of every target and budget, at most 80 columns wide.

    Args:
        summary: its rows; with `label`, they are called that.
        rival: what the others are held against; empty: random rows, or else the starting rows.
    """
    rival = rival or ("random" if any("minus_random" in row for row in summary) else "seeds")
    asked = any(row.get("accuracy") is not None for row in summary)
    wide = max([16, *(len(row["label"]) for row in summary if "label" in row)]) + 1
    blocks: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in summary:
        blocks.setdefault((row["target"], row["budget"]), []).append(row)
    out: list[str] = []
    for (target, budget), rows in blocks.items():
        head = (
            f"{'':<{wide}}{'NLL':>7} {'sd':>6} {'vs ' + rival:>15} {'':<15}"
            f"{'tokens':>7} {'n':>2}" + (f" {'acc':>5}" if asked else "")
        )
        out += [""] if out else []
        out += [f"{Path(target).name}, budget {budget}", head, "-" * len(head)]
        for row in rows:
            out += _line(row, f"minus_{rival}", wide)
    for (target, budget), rows in blocks.items():
        labels = {row["method"]: row["label"] for row in rows if "label" in row}
        for note in (_elsewhere(rows), *notes(rows, labels)):
            if note:
                out += ["", *textwrap.wrap(f"{Path(target).name}, budget {budget}: {note}", 80)]
    return out


def _line(row: Mapping[str, Any], key: str, wide: int) -> list[str]:
    """A row of the table, and a second line where only some of its trainings failed."""
    name = row.get("label", row["method"])
    lost = row.get("failed", 0)
    some = f"  {lost} of its trainings failed: {row['why']}"[:80] if lost else ""
    if row.get("report_nll") is None:
        return [f"{name:<{wide}}failed: {row['why']}"[:80]]
    sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
    found, against, word = row.get(key), "", ""
    if found:
        against = f"{found['mean']:+.3f}"
        if found["over_trainings"] is not None:
            against += f" ±{found['over_trainings']:.3f}"
        word = verdict(row, key.removeprefix("minus_"))
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
    line = (
        f"{name:<{wide}}{row['report_nll']:>7.3f} {sd:>6} {against:>15} {word:<15}"
        f"{row['tokens']:>7} {row['trainings']:>2} {accuracy:>5}"
    )
    return [line.rstrip(), *([some] if some else [])]


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
    named = [(str((labels or {}).get(row["method"], row["method"])), row) for row in rows]
    parts = [f"{name} {form(row[key])}" for name, row in named if row.get(key) is not None]
    return ("; " if any("," in name for name, _ in named) else ", ").join(parts)
