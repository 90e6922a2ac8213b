"""Real rows by a search: random sets are trained on, and the rows of the worse ones dropped.

The search is `nacd.selection.winnowing`, what it trains with `nacd.selection.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nacd.selection.choice import take
from nacd.selection.filters import filtered
from nacd.selection.held import LATELY, key_of
from nacd.selection.judges import judges_of
from nacd.selection.method import Ranking, Task
from nacd.selection.random import random_order
from nacd.selection.sources import ModelSource, others
from nacd.selection.winnowing import Winnow, Winnowed
from nacd.store.cache import Cache
from nacd.training.student import LEARNING_SEED


def winnow(task: Task) -> Ranking:
    """The rows of the best set found, then all others; goes on where it was stopped.

    Raises:
        UserError: a training diverged, the budget takes more rows than there are, or the folder
            holds a search with other settings.
    """
    train = task.prepared.train
    judges, aside = judges_of(task, "winnow")
    rows = [task.trained_row(i) for i in range(len(train))]
    free = (i for i in random_order(len(rows), task.seed) if i not in aside)
    pool = list(filtered(free, train, task.config))
    folder = Cache(task.folder)
    folder.belongs("search", key_of(task, "winnowed"), LATELY)

    def taken(order: Sequence[int]) -> list[int]:
        return take(task.budget, list(train.rows), order)

    main = ModelSource("winnow", task.prepared.model, task.recipe, rows, judges, None, aside)
    search = Winnow(
        [main, *others(task, "winnow", aside)],
        pool,
        taken,
        seed=LEARNING_SEED + task.seed,
        folder=folder,
        progress=task.progress,
    )
    found = search.run(task.config.minutes)
    scores = np.full(len(rows), np.nan)
    for row, score in found.scores.items():
        scores[row] = score
    chosen = sorted(found.rows, key=lambda i: -found.scores.get(i, 0.0))
    # the longest of the rest next: it does not fit what a budget of tokens leaves
    rest = sorted(set(range(len(rows))) - set(chosen), key=lambda i: -len(train.rows[i]))
    return Ranking(
        [*chosen, *rest], scores, found.flops, filtered=True, measured=measured(task, found)
    )


def measured(task: Task, found: Winnowed) -> dict[str, str]:
    """What a search found, in words, by a label."""
    rows = "target rows" if task.config.judge == "target" else "training rows set aside"
    said = {
        "search": (
            f"{found.sets} sets trained on in {found.seconds / 60:.0f} min, rows in play "
            f"{found.pool[0]} at first, {found.pool[1]} at the end"
        ),
        "spread of random sets": f"{found.spread:.3f} (standard deviation of the NLL)",
    }
    if found.judged is None:
        return said | {"chosen": "the first random draw: nothing was better in the last check"}
    judged, interval = found.judged, ""
    if judged.interval is not None:
        interval = f" ± {judged.interval:.3f} (95 % over {judged.trainings} trainings a side)"
    kinds = {"left": "what elimination left", "dealt": "the best set dealt"}
    return said | {
        "chosen": kinds[found.kind],
        f"NLL of the {rows}": (
            f"{judged.first:.3f}, of a random draw {judged.second:.3f}: "
            f"{judged.difference:+.3f}{interval}"
        ),
    }
