"""Every row of the results table trained and measured alike, on the test rows.

Rows, in order: zero-shot, random draws, the starting rows untouched, and with random tokens at the
learnable positions, NACD's soft prompts, NACD's text, the full data at equal steps and for
`full_epochs`. Same recipe, same batch size, same training seeds; soft prompts and text keep the
learning rate that was learned with them. Where the recipe does not shuffle, seeds and text are
shown shuffled too, so that nobody takes a lucky order for a better text; the full data is shuffled
always. Each training is one JSON file, so that a table goes on where it stopped.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data.rows import Rows
from nacd.model.lora import LoraModel
from nacd.model.prepare import Part
from nacd.statistics.intervals import t_interval
from nacd.store.processes import spread
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.student import train_student, visited


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    name: str
    label: str
    data: Callable[[int], Rows | None]
    """Training seed -> rows; None trains nothing."""
    vectors: Tensor | None = None
    changed: float | None = None
    """Share of learnable tokens that differ from the starting rows'."""
    recipe: Recipe | None = None
    """If not the table's."""
    steps: int | None = None
    """If not the recipe's own number."""
    seeds: int | None = None
    """If not the table's number of trainings."""


def random_prompts(data: Rows, allowed: Tensor, seed: int) -> Rows:
    """The same rows with random choosable tokens at the slots."""
    pool = allowed.nonzero()[:, 0].cpu().numpy()
    drawn = np.random.default_rng((seed, 29)).choice(pool, size=data.size)
    return data.with_ids(torch.from_numpy(drawn))


def climb(
    model: LoraModel,
    recipe: Recipe,
    entries: Sequence[Entry],
    report: Part,
    seeds: int,
    folder: RunFolder,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train and measure every entry; one summary a row of the table.

    Args:
        model: source model; its LoRA is overwritten.
        recipe: of every row, the learning rate included.
        entries: the rows.
        report: the test rows, read here alone.
        seeds: trainings an entry.
        folder: keeps one JSON a training under `ladder/`; one of other rows, vectors or another
            learning rate is made anew.
        progress: display.
    """
    cells: dict[str, list[dict[str, Any]]] = {}
    work = [
        (e, s) for e in entries for s in range(1 if e.name == "zero-shot" else e.seeds or seeds)
    ]

    def measured(training: tuple[Entry, int]) -> dict[str, Any]:
        entry, seed = training
        data, used = entry.data(seed), entry.recipe or recipe
        return folder.once(
            f"ladder/{entry.name}-{seed}",
            partial(_measure, model, used, entry, data, seed, report),
            of=f"{(data or Rows((), 0)).digest(entry.vectors)} at {used.learning_rate:.9g}",
        )

    with progress.stage("table", len(work)) as tick:

        def told(done: int, cell: dict[str, Any]) -> None:
            tick(done, math.nan if cell["report_nll"] is None else cell["report_nll"])

        for (entry, _), cell in zip(work, spread(work, measured, told), strict=True):
            cells.setdefault(entry.name, []).append(cell)
    return [_summary(entry, cells[entry.name], cells.get("seeds")) for entry in entries]


def _measure(
    model: LoraModel,
    used: Recipe,
    entry: Entry,
    data: Rows | None,
    seed: int,
    report: Part,
) -> dict[str, Any]:
    began = time.perf_counter()
    if data is None:
        theta, rows, tokens, steps = model.zero_theta(), 0, 0, 0
    else:
        if entry.steps is None:
            used.check_rows(len(data.rows))
        steps = used.total_steps(len(data.rows)) if entry.steps is None else entry.steps
        theta = train_student(model, used, data, seed, vectors=entry.vectors, steps=steps)
        rows, tokens = visited(data, used, steps, seed)
    trained = time.perf_counter() - began
    found = response_nll(model, theta, report.rows)
    return {
        "method": entry.name,
        "seed": seed,
        "report_nll": found.mean,
        "rows": rows,
        "tokens": tokens,
        "steps": steps,
        "learning_rate": used.learning_rate,
        "training_seconds": trained,
        "row_nll": [round(float(x), 5) for x in found.nll],
    }


def _summary(
    entry: Entry, cells: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """A row of the table; its figure is None where one of its trainings diverged."""
    values = [cell["report_nll"] for cell in cells]
    diverged = values.count(None)
    row: dict[str, Any] = {
        "method": entry.name,
        "label": entry.label,
        "report_nll": None if diverged else statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 and not diverged else None,
        "trainings": len(values),
        "diverged": diverged,
        "rows": round(statistics.fmean(cell["rows"] for cell in cells)),
        "tokens": round(statistics.fmean(cell["tokens"] for cell in cells)),
        "steps": round(statistics.fmean(cell["steps"] for cell in cells)),
        "learning_rate": cells[0]["learning_rate"],
        "tokens_changed": entry.changed,
        "training_seconds": statistics.fmean(cell["training_seconds"] for cell in cells),
    }
    others = [cell["report_nll"] for cell in base or ()]
    if others and entry.name not in ("seeds", "zero-shot") and None not in (*values, *others):
        pairs = [a - b for a, b in zip(values, others, strict=False)]
        row["minus_seeds"] = statistics.fmean(pairs)
        if (spread := t_interval(pairs)) is not None:
            row["minus_seeds_95"] = spread
    return row


def lines(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table, at most 80 columns wide."""
    head = (
        f"{'':<24}{'NLL':>7} {'sd':>6} {'vs start':>15} {'tokens':>8} {'steps':>5} {'changed':>7}"
    )
    out = [head, "-" * len(head)]
    for row in summary:
        sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
        against = ""
        if "minus_seeds" in row:
            against = f"{row['minus_seeds']:+.3f}"
            if "minus_seeds_95" in row:
                against += f" ±{row['minus_seeds_95']:.3f}"
        changed = "" if row["tokens_changed"] is None else f"{row['tokens_changed']:.1%}"
        nll = "none" if row["report_nll"] is None else f"{row['report_nll']:.3f}"
        out.append(
            f"{row['label']:<24}{nll:>7} {sd:>6} {against:>15} "
            f"{row['tokens']:>8} {row['steps']:>5} {changed:>7}"
        )
        if row.get("diverged"):
            out.append(f"  {row['diverged']} of its {row['trainings']} trainings diverged")
    return out


def entries_for(
    chosen: Sequence[str],
    *,
    draws: Callable[[int], Rows],
    seeds: Rows,
    learnable: Rows,
    allowed: Tensor,
    soft: Tensor,
    soft_rate: float,
    soft_step: int,
    text: Rows,
    text_changed: float,
    text_rate: float,
    last: Rows,
    last_changed: float,
    last_rate: float,
    full: Rows,
    recipe: Recipe,
    full_epochs: float,
) -> list[Entry]:
    """The table's rows by name, in the table's order; see `nacd.config.LADDER`.

    Args:
        chosen: names of rows.
        draws: training seed -> random rows.
        seeds: the untouched starting rows.
        learnable: the same with their learnable slots, and with a prefix where that is learned.
        allowed: (V,) bool, tokens that may be chosen.
        soft: the soft prompts, (Q, d), for the slots of `learnable`.
        soft_rate: learning rate that they were looked at with.
        soft_step: outer step that they are of; 0: nothing is learned in them.
        text: the exported rows.
        text_changed: share of their learnable tokens that are not the starting rows'.
        text_rate: learning rate that they were looked at with.
        last: the text of the last look; a row of the table where it is another one.
        last_changed: the same share of it.
        last_rate: the same rate of it.
        full: all training rows.
        recipe: of every row, but for what is said above.
        full_epochs: epochs of the row `full`.
    """
    steps = recipe.total_steps(len(seeds.rows))
    shuffled = replace(recipe, shuffle=True)
    text_recipe = replace(recipe, learning_rate=text_rate)
    where = "prompts" if learnable.rows == seeds.rows else "prefix"
    rows = {
        "zero-shot": [Entry("zero-shot", "zero-shot", lambda _: None)],
        "random": [Entry("random", "random rows", draws, recipe=shuffled)],
        "seeds": [Entry("seeds", "starting rows", lambda _: seeds, changed=0.0)],
        "random-prompts": [
            Entry(
                "random-prompts",
                f"random {where}",
                lambda seed: random_prompts(learnable, allowed, seed),
                changed=1.0,
            )
        ],
        "soft": [
            Entry(
                "soft",
                "NACD soft" if soft_step else "NACD soft, at the start",
                lambda _: learnable,
                vectors=soft,
                recipe=replace(recipe, learning_rate=soft_rate),
            )
        ],
        "text": [
            Entry("text", "NACD text", lambda _: text, changed=text_changed, recipe=text_recipe)
        ],
        "full": [
            Entry(
                "full-equal-steps",
                "full, equal steps",
                lambda _: full,
                recipe=shuffled,
                steps=steps,
            ),
            Entry(
                "full",
                f"full, {full_epochs:g} epoch{'s' * (full_epochs != 1)}",
                lambda _: full,
                recipe=replace(shuffled, steps=0, epochs=full_epochs),
                seeds=1,
            ),
        ],
    }
    if last.rows != text.rows:
        rows["text"].append(
            Entry(
                "text-last",
                "NACD text, last look",
                lambda _: last,
                changed=last_changed,
                recipe=replace(recipe, learning_rate=last_rate),
            )
        )
    if not recipe.shuffle:
        rows["seeds"].append(
            Entry(
                "seeds-shuffled",
                "starting rows, shuffled",
                lambda _: seeds,
                changed=0.0,
                recipe=shuffled,
            )
        )
        rows["text"].append(
            Entry(
                "text-shuffled",
                "NACD text, shuffled",
                lambda _: text,
                changed=text_changed,
                recipe=replace(text_recipe, shuffle=True),
            )
        )
    return [entry for name in rows if name in chosen for entry in rows[name]]
