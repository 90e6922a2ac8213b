"""What a comparison says to do: one sentence a target model and budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from nacd.comparison import cautions
from nacd.comparison.table import STARTING, UNREAL, best_real
from nacd.comparison.text import lines
from nacd.config.methods import METHODS
from nacd.statistics.verdict import Rival, beats, decide, read_difference

Row = Mapping[str, Any]
LABELS = {method: entry.name for method, entry in METHODS.items() if entry.name} | {
    "random": "random rows",
    "labelled": "random, soft labels",
    "best-of": "best of draws",
    "longest": "longest responses",
    "seeds": "starting rows",
    "seeds-shuffled": "starting rows, shuffled",
    "random-prompts": "random prompts",
    "other-prompts": "others' prompts",
    "soft": "NACD soft",
    "text": "NACD text",
    "text-last": "NACD text, last check",
    "text-shuffled": "NACD text, shuffled",
    "full-equal-steps": "full, equal steps",
}
"""Rows of a table by the names that people know."""
AGAIN = "give more --trainings"


def called(method: str) -> str:
    """A set of rows in a sentence: `random rows`, `the rows by RDS+`."""
    if method == "random":
        return "random rows"
    if method == "text":
        return "the distilled rows"
    if method in STARTING:
        return f"the {LABELS[method].replace(', shuffled', ' in another order')}"
    return f"the rows by {LABELS.get(method, method)}"


def rivals(row: Row) -> dict[str, Rival]:
    """What a row is held against: random rows, the best real choice, its starting rows."""
    found: dict[str, Rival] = {}
    for key in ("random", "best", "seeds"):
        held = read_difference(row.get(f"minus_{key}"))
        name = row["best"] if key == "best" and held else key
        if held and name not in found:
            found[name] = Rival(called(name), held)
    return found


def decision(rows: Sequence[Row]) -> str:
    """What to do, against what, and the figures, for the rows of one target and budget.

    Args:
        rows: those that have a figure.
    """
    known = {str(row["method"]): row for row in rows}
    text = known.get("text")
    if text and (held := rivals(text)):
        real = best_real({method: row["report_nll"] for method, row in known.items()})
        chosen = rivals(known[real]).get("random") if real not in ("random", *STARTING) else None
        if beats([*held.values()]) or chosen is None or not beats([chosen]):
            return decide(called("text"), [*held.values()], AGAIN)
        taken = decide(called(real), [chosen], AGAIN)
        return f"{taken[:-1]}; with the distilled rows it is {held[real].clause()}."
    choices = {m: row for m, row in known.items() if m not in (*UNREAL, *STARTING, "random")}
    best = min(choices, key=lambda method: choices[method]["report_nll"], default="")
    if best and (against := rivals(choices[best]).get("random")):
        return decide(called(best), [against], AGAIN)
    trained = {method: row for method, row in known.items() if method != "zero-shot"}
    if not trained:
        return "Nothing was trained: name more rows with --methods."
    lowest = min(trained, key=lambda method: trained[method]["report_nll"])
    name = (
        called(lowest) if lowest not in UNREAL or lowest == "text" else LABELS.get(lowest, lowest)
    )
    missing = "random" if "random" not in trained else "rds+"
    return (
        f"Nothing to decide by: {name} end lowest, at test NLL "
        f"{trained[lowest]['report_nll']:.3f}; name other rows to hold them against "
        f"(--methods {missing}, say)."
    )


def decisions(table: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Target model, budget and decision for all of a table, in its order."""
    groups = dict.fromkeys((row["target"], row["budget"]) for row in table)
    for target, budget in groups:
        own = [row for row in table if (row["target"], row["budget"]) == (target, budget)]
        made = [row for row in own if row.get("report_nll") is not None]
        said = decision(made) if made else "Nothing could be trained."
        if len(groups) > 1:
            size = f"{budget} of the rows" if budget.endswith("%") else f"{budget} rows"
            said = f"With {size} for {Path(target).name}, {said[0].lower()}{said[1:]}"
        yield target, budget, said


def warnings(
    table: Sequence[Row], sizes: Mapping[str, int], config: Mapping[str, Any]
) -> Iterator[cautions.Caution]:
    """What weakens the figures of a comparison.

    Args:
        table: its rows.
        sizes: rows of each split.
        config: its `run.yaml`.
    """
    made = [row for row in table if row.get("report_nll") is not None]
    few = [row["trainings"] for row in made if row["method"] not in ("zero-shot", "full")]
    if few:
        yield from cautions.of_trainings(min(few))
    yield from cautions.of_test_rows(sizes["report"])
    shuffle = bool(config.get("recipe", {}).get("shuffle", False))
    yield from cautions.of_order([row["method"] for row in made], shuffle)
    yield from cautions.of_model(*dict.fromkeys(row["target"] for row in table))


def comparison_lines(
    table: Sequence[Row], sizes: Mapping[str, int], config: Mapping[str, Any]
) -> Iterator[str]:
    """A comparison on a terminal: the table, and what weakens it."""
    yield from lines(table)
    yield ""
    for title, text in warnings(table, sizes, config):
        yield from wrap(f"{title} {text}", 80)


def decided_lines(table: Sequence[Row]) -> Iterator[str]:
    """What to do for every target and budget, that of the first one last."""
    for _, _, said in [*decisions(table)][::-1]:
        yield from wrap(said, 80)
