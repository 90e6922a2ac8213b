"""The rows that judge: their loss after a training decides between sets of rows."""

from __future__ import annotations

from collections.abc import Sequence

from nacd.data import Encoded
from nacd.errors import UserError
from nacd.selection.method import Task
from nacd.selection.random import random_order

JUDGES = 256
"""Training rows set aside to judge; at most a quarter of all."""
JUDGES_SEED = 499
"""They are the first of a random order by this seed, beyond --seed."""


def judges_of(task: Task, method: str) -> tuple[Sequence[Encoded], set[int]]:
    """The rows that judge, and the training rows that are or equal one of them.

    Args:
        task: its `judge` says which rows.
        method: for error messages.

    Raises:
        UserError: the budget takes rows that are set aside.
    """
    if task.config.judge == "target":
        return task.prepared.target.rows, set()
    rows = list(task.prepared.train.rows)
    order = random_order(len(rows), task.seed + JUDGES_SEED)
    count = min(JUDGES, len(rows) // 4)
    digests = [example.digest for example in task.prepared.train.examples]
    judging = {digests[i] for i in order[:count]}
    aside = {i for i, digest in enumerate(digests) if digest in judging}
    free = [i for i in order[::-1] if i not in aside]
    wanted = len(task.budget.rows(rows, [*free, *sorted(aside)]))
    if not count or wanted > len(free):
        raise UserError(
            f"--method {method}: --budget {task.budget} takes {wanted} of {len(rows)} training "
            f"rows, and {max(1, len(aside))} are set aside to judge by; give a smaller one, or "
            "--judge target."
        )
    return [rows[i] for i in order[:count]], aside


def judged_by(task: Task) -> str:
    """Which rows judge, in a few words."""
    rows = "target rows" if task.config.judge == "target" else "training rows set aside"
    return f"judged by {rows}"
