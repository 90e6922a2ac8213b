"""A check on a terminal: the plan before it, the table and the verdict after it; 80 columns."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nacd.checking.plan import Plan
from nacd.terminal.units import duration

if TYPE_CHECKING:
    from nacd.checking.outcome import Checked

WIDTH = 80
MOST = 5
"""Entries named of what does not fit."""


def plan_lines(made: Plan) -> list[str]:
    """A plan: every stage with its trainings and its time, and what there is no time for."""
    lines = [
        f"  {name:<40}{count:>4}  {duration(seconds)}" for name, count, seconds in made.stages()
    ]
    out: dict[str, float] = {}
    for goal, seconds in made.left_out:
        name = made.sizes.name(goal.kind, goal.rows)
        out[f"more of {name}" if name in _names(made) else name] = seconds
    if out:
        text = ", ".join(f"{name} ({duration(s)})" for name, s in [*out.items()][:MOST])
        lines += textwrap.wrap(
            f"no time for {text}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    return lines


def _names(made: Plan) -> set[str]:
    return {name for name, _, _ in made.stages()}


def table_lines(table: Sequence[Mapping[str, Any]], budget: int) -> list[str]:
    """The table of all sets."""
    head = (
        f"{'trained on':<22}{'test NLL':>9} {'95 %':>7} {f'minus {budget:,} random':>28}"
        f"{'n':>3}  {'':<8}"
    ).rstrip()
    lines = [head, "-" * WIDTH]
    for row in table:
        half = "" if row["half"] is None else f"\N{PLUS-MINUS SIGN}{row['half']:.3f}"
        against, text, word = row["minus_random"], "", ""
        if against is not None:
            text, word = f"{against['mean']:+.3f}", against["word"]
            if against["low"] is not None:
                text += f" ({against['low']:+.3f} to {against['high']:+.3f})"
        word = {"cannot be told": "unclear", "too few passes": "unclear"}.get(word, word)
        count = row["trainings"] or ""
        line = f"{row['name']:<22}{row['nll']:>9.3f} {half:>7} {text:>28}{count:>3}  {word}"
        lines.append(line.rstrip())
    return lines


def print_checked(result: Checked, say: Callable[[str], None]) -> None:
    """The end of a check: its table, its files and, last, what to do."""
    results = json.loads((result.folder / "results.json").read_text(encoding="utf-8"))
    for line in measured_lines(results):
        say(line)
    if result.dataset is not None:
        for name, made in results["datasets"].items():
            file = result.folder / name / "train.jsonl"
            say(f"{made['rows']:,} rows, chosen by {made['by']}: {file}")
    if result.labels is not None:
        say(f"soft labels of the {results['budget_rows']:,} rows: {result.labels}")
    say(result.held_out)
    say(f"report: {result.report}")
    for part in (results["detail"], results["verdict"]):
        for line in textwrap.wrap(part, WIDTH):
            say(line)


def checked_lines(results: Mapping[str, Any]) -> list[str]:
    """What to do, the table and what to mind, for who looks at a check again."""
    said = [*textwrap.wrap(results["verdict"], WIDTH), *textwrap.wrap(results["detail"], WIDTH)]
    return ["", *said, *measured_lines(results)]


def measured_lines(results: Mapping[str, Any]) -> list[str]:
    """The table and what to mind."""
    lines = ["", "Test NLL per response token (nats; lower is better)"]
    lines += [*table_lines(results["table"], results["budget_rows"]), ""]
    for name, text in results["warnings"]:
        lines += textwrap.wrap(f"{name} {text}", WIDTH)
    if out := results["left_out"]:
        names = ", ".join(f"{entry['name']} ({duration(entry['seconds'])})" for entry in out)
        lines += textwrap.wrap(f"There was no time for {names}.", WIDTH)
    return [*lines, ""]
