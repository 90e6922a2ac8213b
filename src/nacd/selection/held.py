"""What a search's files are of: written down beside them, and held to by who goes on."""

from __future__ import annotations

from nacd.selection.judges import judged_by
from nacd.selection.method import Task

LATELY = ("tokens",)
"""What files of an older version do not say."""


def key_of(task: Task, how: str = "") -> dict[str, str]:
    """All that a search by judged trainings depends on: in words, and a hash of the tokens.

    Args:
        task: what is chosen.
        how: what else the search depends on.
    """
    config = task.config
    parts = [
        *(f"rows {task.rows_digest()}", f"budget {task.budget}", f"seed {task.seed}"),
        *(judged_by(task), *([how] if how else [])),
        *(f"filters {config.dedup:g} {config.stratify}", str(task.recipe)),
    ]
    also = [f", also {name}" for name in config.also] + [f" {r:g}" for r in config.also_rates]
    return {"of": ", ".join(parts) + "".join(also), "tokens": task.tokens_digest()}
