"""From a method's name to chosen rows: the methods there are, the filters, the budget.

A method ranks, and may do so lazily; near-copies are left out (`--dedup`), groups interleaved
(`--stratify`), and the order is read as far as the budget reaches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any

from nacd.config import Budget, SelectionConfig
from nacd.config.methods import METHODS, check_method
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Example
from nacd.errors import UserError
from nacd.selection.filters import filtered
from nacd.selection.method import Ranking, Task
from nacd.store.files import read_json, write_json
from nacd.store.run import RunFolder


@dataclass(frozen=True)
class Chosen:
    """What `choose` took."""

    indices: list[int]
    """Training rows, best first."""
    ranking: Ranking
    """The method's verdict before any filter; its order is used up where it was lazy."""


def check_rows(
    method: str,
    config: SelectionConfig,
    train: Sequence[Example],
    target: Sequence[Example],
    flag: str = "--method",
) -> None:
    """Refuse rows that lack what the method needs.

    Raises:
        UserError: no target rows for a method that looks at them, or no groups to stratify by.
    """
    judged = METHODS[method].judged and config.judge == "target"
    if (METHODS[method].needs_target or judged) and not len(target):
        raise UserError(
            f"{flag} {method}: needs target rows, and there are none: raise --target-rows, or name "
            "a file with --target."
        )
    if config.stratify and not any(example.group for example in train):
        raise UserError(
            "--stratify: no row has a group; name the column that holds it with --group-column."
        )


def rank(task: Task, method: str, flag: str = "--method") -> Ranking:
    """The training rows by one method, unfiltered.

    Args:
        task: what the method may look at.
        method: a key of `METHODS`.
        flag: the flag that named the method, for error messages.

    Raises:
        UserError: as `check_method` and `check_rows`.
    """
    check_method(method, task.config, flag)
    check_rows(
        method, task.config, task.prepared.train.examples, task.prepared.target.examples, flag
    )
    module = METHODS[method].module
    return getattr(import_module(module), module.rpartition(".")[2])(task)


class Rankings:
    """What was ranked in this process, for choices that differ in their budget alone."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Recipe, Ranking]] = {}
        self._seconds: dict[str, float] = {}

    def of(self, task: Task, method: str, flag: str) -> tuple[Ranking, float]:
        """A ranking, and the seconds that earlier choices have spent on it."""
        if METHODS[method].of_budget:
            return rank(task, method, flag), 0.0
        recipe, ranking = self._kept.get(method, (None, None))
        if ranking is None or recipe != task.recipe:
            made = rank(task, method, flag)
            ranking = replace(made, order=_Replayed(made.order))
            self._kept[method], self._seconds[method] = (task.recipe, ranking), 0.0
        return ranking, self._seconds[method]

    def spent(self, method: str, seconds: float) -> None:
        """Count what a choice took to those after it."""
        if method in self._seconds:
            self._seconds[method] += seconds


class _Replayed:
    """An order that may be lazy, read more than once."""

    def __init__(self, order: Iterable[int]):
        self._rest, self._read = iter(order), list[int]()

    def __iter__(self) -> Iterator[int]:
        yield from self._read
        for row in self._rest:
            self._read.append(row)
            yield row


def choose(
    task: Task, method: str, flag: str = "--method", ranking: Ranking | None = None
) -> Chosen:
    """The rows that the task's budget pays for, by one method and the task's filters.

    Args:
        task: what the method may look at, the budget, and the filters.
        method: a key of `METHODS`.
        flag: the flag that named the method, for error messages.
        ranking: the method's, if it is there already.

    Raises:
        UserError: as `rank`, or fewer rows than the budget asks for.
    """
    ranking = ranking or rank(task, method, flag)
    order = ranking.order
    if not ranking.filtered:
        order = filtered(order, task.prepared.train, task.config)
    return Chosen(take(task.budget, task.prepared.train.rows, order), ranking)


def take(budget: Budget, rows: Sequence[Encoded], order: Iterable[int]) -> list[int]:
    """The first rows of an order that the budget pays for; as `Budget.rows`, for a lazy order.

    A percentage is one of all training rows, whatever the order leaves out.

    Raises:
        UserError: more rows or tokens than there are, or than the order holds.
    """
    if budget.kind != "tokens":
        count = budget.count(len(rows))
        taken = list(islice(order, count))
        if len(taken) == count:
            return taken
    else:
        taken, tokens = [], 0
        for row in order:
            taken.append(row)
            tokens += len(rows[row])
            if tokens > budget.number:
                break
        if tokens > budget.number or len(taken) == len(rows):
            return budget.rows(rows, taken)
    raise UserError(
        f"--budget {budget}: only {len(taken)} of the {len(rows)} training rows are left once "
        "near-copies are out; give a smaller budget, or a higher --dedup."
    )


def choose_once(
    run: RunFolder,
    name: str,
    task: Task,
    method: str,
    flag: str = "--method",
    rankings: Rankings | None = None,
) -> dict[str, Any]:
    """`choose`, kept in the run folder as `name`.json, so that a run chooses once.

    Args:
        run: the folder.
        name: of the file.
        task: as of `choose`.
        method: as of `choose`.
        flag: as of `choose`.
        rankings: what this process has ranked for other budgets.

    Raises:
        UserError: as `choose`, or the kept rows are not those that they were.

    Returns:
        `method`, `rows` (indices, best first), their `digests` and `scores` (None: no such),
        `seconds` (of interrupted calls too) and `flops` spent on choosing, what was `measured`,
        and the `minutes` that a search was given (None: it is none).
    """

    def make() -> dict[str, Any]:
        clock, began = run.path / f"{name}-seconds.json", time.perf_counter()
        before = read_json(clock)["seconds"] if clock.is_file() else 0.0
        known = rankings or Rankings()
        try:
            ranking, shared = known.of(task, method, flag)
            chosen = choose(task, method, flag, ranking)
        except KeyboardInterrupt:
            write_json(clock, {"seconds": before + time.perf_counter() - began})
            raise
        took = time.perf_counter() - began
        known.spent(method, took)
        scores = chosen.ranking.scores
        return {
            "method": method,
            "rows": chosen.indices,
            "digests": [task.prepared.train.examples[i].digest for i in chosen.indices],
            "scores": [
                None if scores is None or not math.isfinite(scores[i]) else float(scores[i])
                for i in chosen.indices
            ],
            "seconds": before + shared + took,
            "flops": chosen.ranking.flops,
            "minutes": task.config.minutes if METHODS[method].anytime else None,
            "measured": dict(chosen.ranking.measured),
        }

    def stopped(kept: dict[str, Any]) -> bool:
        """Whether time ended a search that is given more now."""
        return (kept.get("minutes") or math.inf) < task.config.minutes

    found = run.once(name, make, stale=stopped)
    examples = task.prepared.train.examples
    now = [examples[i].digest if i < len(examples) else "" for i in found["rows"]]
    if now != found["digests"]:
        raise UserError(
            f"{run.path / f'{name}.json'}: the training rows that it numbers are others now (a "
            "tokenizer that has changed, or another version of nacd, keeps other rows); choose "
            "another --out."
        )
    return found
