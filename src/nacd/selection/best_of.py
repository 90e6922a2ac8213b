"""The plainest search there is: several random draws, each trained on, the best one kept.

Every draw of the budget's size is trained on by the recipe, in its own order where the recipe does
not shuffle, and judged by the loss on target rows, or on training rows that are set aside for it:
the same for every draw. What a method has learned in the time of `--tries` trainings has to be held
against this. The choice is as good as the judge: some dozens of rows rank draws poorly.
"""

from __future__ import annotations

import math
from typing import Any

from nacd.data import training_order
from nacd.data.rows import Rows
from nacd.errors import UserError
from nacd.selection.choice import take
from nacd.selection.filters import filtered
from nacd.selection.held import LATELY, key_of
from nacd.selection.judges import judges_of
from nacd.selection.method import Ranking, Task, forward_flops
from nacd.selection.random import random_order
from nacd.store.cache import Cache
from nacd.store.files import finite
from nacd.store.key import hold
from nacd.store.processes import count, spread
from nacd.training.student import LEARNING_SEED, mean_nll, train_student


def best_of(task: Task) -> Ranking:
    """The rows of the best draw in its own order, then all others; goes on after the last draw.

    Draws are what the filters leave of a random order, so that what is tried is what is chosen.

    Raises:
        UserError: every training diverged, the budget leaves no rows to judge by, or the folder
            holds draws made with other settings.
    """
    model, rows = task.prepared.model, list(task.prepared.train.rows)
    judges, aside = judges_of(task, "best-of")
    found, flops = _read(task), 0.0
    losses: list[float | None] = found["losses"]
    draws: list[list[int]] = []
    sets: list[Rows] = []
    for number in range(task.config.tries):
        order = random_order(len(rows), task.seed + 1_000_003 * number)
        free = [i for i in order if i not in aside]
        draws.append(take(task.budget, rows, filtered(free, task.prepared.train, task.config)))
        pad = model.tokenizer.pad_token_id
        sets.append(Rows.of([task.trained_row(i) for i in draws[-1]], pad))

    def judged(number: int) -> float | None:
        theta = train_student(model, task.recipe, sets[number], LEARNING_SEED + number)
        return finite(mean_nll(model, theta, judges))

    with task.progress.stage("draws", task.config.tries, done=len(losses)) as tick:
        while len(losses) < task.config.tries:  # kept whenever every process has made one
            group = range(len(losses), min(len(losses) + count(), task.config.tries))
            losses += spread(group, judged)
            Cache(task.folder).keep("draws", found)
            tick(len(losses), min((x for x in losses if x is not None), default=math.nan))
        for number, data in enumerate(sets):
            seed = LEARNING_SEED + number
            total = task.recipe.total_steps(len(data.rows))
            visits = training_order(
                len(data.rows), task.recipe.batch_size, total, task.recipe.order_seed(seed)
            )
            trained = sum(len(data.rows[i]) for batch in visits for i in batch)
            flops += forward_flops(model, 2 * trained + sum(len(row) for row in judges))
    kept = {number: loss for number, loss in enumerate(losses) if loss is not None}
    if not kept:
        raise UserError(
            f"--method best-of: training diverges on every draw at --learning-rate "
            f"{task.recipe.learning_rate:g}; give a smaller one."
        )
    best = draws[min(kept, key=lambda number: kept[number])]
    # the longest of the rest next: it does not fit what a budget of tokens leaves, as the row that
    # ended the draw did not
    rest = sorted(set(range(len(rows))) - set(best), key=lambda i: -len(rows[i]))
    return Ranking([*best, *rest], None, flops, filtered=True)


def _read(task: Task) -> dict[str, Any]:
    """Judged losses of the draws so far."""
    found, now = Cache(task.folder).kept("draws"), key_of(task)
    if found is None:
        return now | {"losses": []}
    hold(task.folder / "draws.json", found, now, lately=LATELY)
    return found
