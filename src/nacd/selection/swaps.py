"""Real rows by a search: rows of a set are swapped for worthier ones, as long as time allows.

The search is `nacd.selection.swapping`, what it trains and weighs rows with
`nacd.selection.sources`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nacd.data import Encoded
from nacd.errors import UserError
from nacd.selection.choice import rank, take
from nacd.selection.filters import filtered
from nacd.selection.held import LATELY, key_of
from nacd.selection.judges import judges_of
from nacd.selection.method import Ranking, Task
from nacd.selection.random import random_order
from nacd.selection.sources import ModelSource, others
from nacd.selection.swapping import Search, Swapped
from nacd.store.cache import Cache
from nacd.training.student import LEARNING_SEED

LENGTHS = 10
"""Classes of response lengths: a row is swapped for one of its class."""


def swaps(task: Task) -> Ranking:
    """The rows of the best set found, then all others; goes on where it was stopped.

    Raises:
        UserError: a training diverged, too few rows to swap, or the folder holds a search with
            other settings.
    """
    train = task.prepared.train
    judges, aside = judges_of(task, "swaps")
    rows = [task.trained_row(i) for i in range(len(train))]
    free = filtered(
        (i for i in random_order(len(rows), task.seed) if i not in aside), train, task.config
    )
    pool = list(free)
    folder = Cache(task.folder)
    folder.belongs("search", key_of(task, f"from {task.config.swaps_from}"), LATELY)
    start = _start(task, pool, folder)
    if len(start) < 2:
        raise UserError(
            f"--method swaps: --budget {task.budget} is one row, and a round trains on what it "
            "leaves; give a larger one."
        )
    if len(start) >= len(pool):
        raise UserError(
            f"--method swaps: --budget {task.budget} takes all of the {len(pool)} rows that may "
            "be chosen, and none is left to swap in; give a smaller one."
        )
    objective = task.prepared.target.rows if task.config.judge == "target" else None
    main = ModelSource("swaps", task.prepared.model, task.recipe, rows, judges, objective, aside)
    search = Search(
        [main, *others(task, "swaps", aside)],
        start,
        pool,
        stratum=_strata(task, rows),
        lengths=[len(row) for row in train.rows],
        most=task.budget.tokens,
        seed=LEARNING_SEED + task.seed,
        folder=folder,
        progress=task.progress,
    )
    found = search.run(task.config.minutes)
    scores = np.full(len(rows), np.nan)
    for row, score in found.scores.items():
        scores[row] = score
    chosen = sorted(found.rows, key=lambda i: -found.scores.get(i, -math.inf))
    # the longest of the rest next: it does not fit what a budget of tokens leaves
    rest = sorted(set(range(len(rows))) - set(chosen), key=lambda i: -len(train.rows[i]))
    return Ranking(
        [*chosen, *rest], scores, found.flops, filtered=True, measured=measured(task, found)
    )


def measured(task: Task, found: Swapped) -> dict[str, str]:
    """What a search found, in words, by a label."""
    rows = "target rows" if task.config.judge == "target" else "training rows set aside"
    spent = f"{found.rounds} rounds and {len(found.checks)} checks in {found.seconds / 60:.0f} min"
    if found.judged is None or not found.changed:
        return {"search": spent, "swapped": "no row: no swap was better than the starting rows"}
    judged, interval = found.judged, ""
    if judged.interval is not None:
        interval = f" ± {judged.interval:.3f} (95 % over {judged.trainings} trainings a side)"
    return {
        "search": spent,
        "swapped": f"{found.changed} of {len(found.rows)} rows",
        f"NLL of the {rows}": (
            f"{judged.first:.3f}, with the starting rows {judged.second:.3f}: "
            f"{judged.difference:+.3f}{interval}"
        ),
    }


def _start(task: Task, pool: list[int], folder: Cache) -> list[int]:
    """The set that the search begins with, kept as `start.json`."""
    method, train = task.config.swaps_from, task.prepared.train

    def make() -> dict[str, Any]:
        order = pool
        if method != "random":
            started = replace(task, folder=task.folder / "start")
            order = [i for i in rank(started, method, "--swaps-from").order if i in set(pool)]
        rows = take(task.budget, list(train.rows), order)
        return {"rows": rows, "digests": [train.examples[i].digest for i in rows]}

    return folder.once("start", make)["rows"]


def _strata(task: Task, rows: Sequence[Encoded]) -> list[int]:
    """Every row's class: of its response's length and, with --stratify, its group."""
    lengths = np.array([row.response_tokens for row in rows])
    borders = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:-1]))
    classes = np.digitize(lengths, borders).tolist()
    if not task.config.stratify:
        return classes
    groups = [example.group for example in task.prepared.train.examples]
    numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
    return [LENGTHS * numbers[g] + c for g, c in zip(groups, classes, strict=True)]
