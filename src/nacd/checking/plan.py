"""What a check trains, in which order, and what of it the time allows: no model, no files.

A check asks for goals, the most telling first: three trainings on random rows of the budget, one on
all rows, three on the rows of each choice, a larger random set, three on the budget's random rows
with the soft labels of the model trained on all rows, smaller random sets, then more of each. The
next job is the first missing one of the first goal that fits into the time left; a goal of which a
part tells nothing is begun only if the whole of it fits.

Sets of other sizes than the budget are trained at the rate tuned there, and for passes (epochs)
of their own: at equal passes a large set takes many more steps than it needs, and a small one too
few. A larger set is first trained for as many steps as the budget's, at least one pass, a smaller
one for as many passes; these are doubled as long as the loss on validation rows falls by more than
its standard error, at most up to the budget's passes (larger sets) or steps (smaller ones).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from nacd.config.methods import METHODS
from nacd.config.recipe import Recipe
from nacd.statistics.intervals import mean_error

TRIES = 6
"""Random draws that `best-of` takes the best of, by validation rows."""
LABELLED = "labelled"
"""Random rows of the budget with the soft labels of a teacher: the model trained on all rows."""
FIRST, MORE, MANY = 3, 5, 10
"""Trainings of a set at first, of a choice and of random rows once there is time."""


def dear(kind: str) -> bool:
    """Whether a set costs many trainings: it comes after all else, and not in the time advised."""
    return kind in METHODS and METHODS[kind].dear


Question = Literal["choices", "size"]
"""Does a choice beat random rows? How many rows are needed?"""


@dataclass(frozen=True, order=True)
class Job:
    """One training and its measurement, or (`number` -1) the choice of a method's rows."""

    kind: str
    """`zero-shot`, `random`, `labelled`, or a method."""
    rows: int
    passes: float
    number: int

    @property
    def choosing(self) -> bool:
        """Whether rows are chosen rather than trained on."""
        return self.number < 0


@dataclass(frozen=True)
class Sizes:
    """Rows of the random sets."""

    budget: int
    total: int
    """All training rows."""
    smaller: int
    """A quarter of the budget; 0: too few rows for a training."""
    larger: int
    """Four times the budget; 0: close to all rows."""

    @property
    def all(self) -> list[int]:
        """From small to large."""
        return [n for n in (self.smaller, self.budget, self.larger, self.total) if n]

    def name(self, kind: str, rows: int, choosing: bool = False) -> str:
        """A set in a few words."""
        if kind == "zero-shot":
            return "no training"
        if choosing:
            return f"choosing by {kind}"
        if kind == LABELLED:
            return f"{rows:,} soft-labelled"
        if kind != "random":
            return f"{rows:,} rows by {kind}"
        return f"all {rows:,} rows" if rows == self.total else f"{rows:,} random rows"


def sizes_of(budget: int, total: int, recipe: Recipe) -> Sizes:
    """The sizes at which random rows are trained on.

    Args:
        budget: rows that the budget pays for, fewer than all.
        total: training rows.
        recipe: of the trainings; its warm-up decides what is too short.
    """
    smaller = budget // 4
    steps = recipe.total_steps(smaller) if smaller else 0
    if not any(recipe.rate(step, steps) for step in range(steps)):
        smaller = 0
    return Sizes(budget, total, smaller, 4 * budget if 8 * budget <= total else 0)


@dataclass(frozen=True)
class Goal:
    """So many trainings on one kind of set."""

    kind: str
    rows: int
    trainings: int
    settle: bool = False
    """Find the set's own passes too."""
    whole: bool = True
    """A part of it tells nothing."""
    needed: bool = False
    """Nothing after it tells anything without it."""

    @property
    def dear(self) -> bool:
        """Whether it is left out of the time advised."""
        return dear(self.kind)


def goals(sizes: Sizes, methods: Sequence[str], labels: bool = True) -> list[Goal]:
    """All that a check would do with time enough, the most telling first.

    Args:
        sizes: of the random sets.
        methods: choices.
        labels: whether soft labels are tried.
    """
    cheap = [method for method in methods if not dear(method)]
    smaller, larger = ([n] if n else [] for n in (sizes.smaller, sizes.larger))

    def choices(of: Sequence[str], trainings: int) -> list[Goal]:
        return [Goal(method, sizes.budget, trainings) for method in of]

    return [
        Goal("zero-shot", 0, 1),
        Goal("random", sizes.budget, FIRST, whole=False, needed=True),
        Goal("random", sizes.total, 1),
        *choices(cheap, FIRST),
        *(Goal("random", n, 1) for n in larger),
        Goal("random", sizes.total, 1, settle=True),
        *([Goal(LABELLED, sizes.budget, FIRST)] if labels else []),
        *(Goal("random", n, 1, settle=True) for n in (*smaller, *larger)),
        *(Goal("random", n, FIRST) for n in (*smaller, *larger)),
        Goal("random", sizes.budget, MANY, whole=False),
        *choices(cheap, MORE),
        Goal("random", sizes.total, FIRST, whole=False),
        *choices([method for method in methods if dear(method)], FIRST),
    ]


@dataclass
class State:
    """What has been done, and what follows from it."""

    sizes: Sizes
    epochs: float
    """Passes over the budget's rows, as tuned."""
    results: dict[Job, Mapping[str, Any]] = field(default_factory=dict)
    """A result has `validation`, the NLL by validation row, where that is needed (else None), and
    `tokens` of those rows."""

    def needs_validation(self, job: Job) -> bool:
        """Whether something is chosen by this training."""
        if job.kind != "random":
            return False
        return job.number < (TRIES if job.rows == self.sizes.budget else 1)

    def passes(self, rows: int) -> tuple[float, float | None]:
        """The passes known to be best for random sets of a size, and those to try next, if any."""
        if rows == self.sizes.budget:
            return self.epochs, None
        steps = self.epochs * self.sizes.budget / rows  # passes that take as many steps
        start, most = self.epochs, math.ceil(steps)
        if rows > self.sizes.budget:
            start, most = min(max(1.0, float(round(steps))), self.epochs), self.epochs
        tried = Job("random", rows, start, 0)
        if tried not in self.results:
            return start, start
        while 2 * tried.passes <= most:
            longer = Job("random", rows, 2 * tried.passes, 0)
            if longer not in self.results:
                return tried.passes, longer.passes
            if not _lower(self.results[longer], self.results[tried]):
                break
            tried = longer
        return tried.passes, None

    def missing(self, goal: Goal) -> list[Job]:
        """The jobs that a goal still asks for, in order; of passes to be found, the next alone."""
        if goal.kind == "zero-shot":
            wanted = [Job("zero-shot", 0, 0.0, 0)]
        elif goal.kind == "random":
            best, longer = self.passes(goal.rows)
            wanted = [Job("random", goal.rows, longer, 0)] if goal.settle and longer else []
            wanted += [Job("random", goal.rows, best, k) for k in range(goal.trainings)]
        else:
            first = [Job(goal.kind, goal.rows, 0.0, -1)]
            if goal.kind == LABELLED:
                first = self.missing(Goal("random", self.sizes.total, 1, settle=True))
                if not first and self.teacher() is None:
                    return []  # it diverged
            elif goal.kind == "best-of":
                first = self._tries()
                if all(self.results.get(job, {}).get("diverged") for job in first):
                    return []  # there is no best one
            numbers = range(goal.trainings)
            wanted = first + [Job(goal.kind, goal.rows, self.epochs, k) for k in numbers]
        return [job for job in dict.fromkeys(wanted) if job not in self.results]

    def teacher(self) -> Job | None:
        """The training on all rows whose passes are the best for them; None: not yet known."""
        best, longer = self.passes(self.sizes.total)
        job = Job("random", self.sizes.total, best, 0)
        done = job in self.results and not self.results[job].get("diverged")
        return job if done and not longer else None

    def _tries(self) -> list[Job]:
        return [Job("random", self.sizes.budget, self.epochs, k) for k in range(TRIES)]

    def drawn(self) -> bool:
        """Whether all draws that `best-of` takes its rows from have been trained on."""
        return all(job in self.results for job in self._tries())

    def best_draw(self) -> int | None:
        """The best draw so far by validation rows; None: none has been judged."""
        return min(self.judged(self._tries()), default=(0.0, None))[1]

    def judged(self, jobs: Sequence[Job]) -> list[tuple[float, int]]:
        """Mean validation NLL and number of those of the trainings that have one."""
        found: list[tuple[float, int]] = []
        for job in jobs:
            result = self.results.get(job)
            if result and result.get("validation") is not None:
                found.append((sum(result["validation"]) / sum(result["tokens"]), job.number))
        return found


def _lower(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a training is better than another by more than a standard error over rows."""
    if one.get("validation") is None or other.get("validation") is None:
        return other.get("diverged", False) and not one.get("diverged", False)
    rows = np.subtract(one["validation"], other["validation"])
    tokens = np.asarray(one["tokens"])
    return float(rows.sum() / tokens.sum()) < -mean_error(rows, tokens)


@dataclass(frozen=True)
class Costs:
    """Seconds of a job, from a measured step."""

    per_token: float
    """Of one training step, per token of its batch."""
    per_read: float
    """Of measuring, per token read."""
    row_tokens: float
    """Mean tokens of a training row."""
    test_tokens: int
    validation_tokens: int
    choosing: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each method takes to choose."""
    disk: Mapping[str, float] = field(default_factory=dict)
    """Bytes that each leaves."""

    def seconds(self, job: Job, state: State) -> float:
        """What a job takes."""
        if job.choosing:
            return self.choosing.get(job.kind, 0.0)
        return self.per_token * self.trained(job) + self.per_read * self.read(job, state)

    def trained(self, job: Job) -> float:
        """Tokens that a job trains on, repeats counted."""
        return job.passes * job.rows * self.row_tokens

    def read(self, job: Job, state: State) -> int:
        """Tokens that a job is measured on."""
        return self.test_tokens + state.needs_validation(job) * self.validation_tokens


def next_job(state: State, wanted: Sequence[Goal], costs: Costs, left: float) -> Job | None:
    """The next job that the time left allows; None: none."""
    for goal in wanted:
        missing = state.missing(goal)
        asked = missing if goal.whole else missing[:1]
        if missing and sum(costs.seconds(job, state) for job in asked) <= left:
            return missing[0]
        if missing and goal.needed:
            break
    return None


@dataclass(frozen=True)
class Plan:
    """What the time is thought to allow; passes that are to be found are taken to double once."""

    jobs: tuple[tuple[Job, float], ...]
    """In order, with seconds."""
    left_out: tuple[tuple[Goal, float], ...]
    """What does not fit, with the seconds that it would take."""
    sizes: Sizes

    @property
    def seconds(self) -> float:
        """All jobs together."""
        return math.fsum(seconds for _, seconds in self.jobs)

    def stages(self) -> Iterator[tuple[str, int, float]]:
        """(what, how many trainings, seconds), jobs of one set together, in order."""
        found: dict[tuple[str, int, bool], list[float]] = {}
        for job, seconds in self.jobs:
            found.setdefault((job.kind, job.rows, job.choosing), []).append(seconds)
        for (kind, rows, choosing), each in found.items():
            yield self.sizes.name(kind, rows, choosing), len(each), math.fsum(each)


def plan(state: State, wanted: Sequence[Goal], costs: Costs, left: float) -> Plan:
    """What will fit into the time left.

    Args:
        state: what is done.
        wanted: the goals, in order.
        costs: of the jobs.
        left: seconds.
    """
    ahead = State(state.sizes, state.epochs, dict(state.results))
    jobs = []
    while (job := next_job(ahead, wanted, costs, left)) is not None:
        seconds = costs.seconds(job, ahead)
        jobs.append((job, seconds))
        ahead.results[job] = {}
        left -= seconds
    out = []
    for goal in wanted:
        missing = ahead.missing(goal)
        if missing:
            out.append((goal, math.fsum(costs.seconds(job, ahead) for job in missing)))
    return Plan(tuple(jobs), tuple(out), state.sizes)


def still_asked(state: State, wanted: Sequence[Goal], costs: Costs, question: Question) -> float:
    """Seconds of all that is missing for a question, without what is dear."""
    core = [goal for goal in wanted if not goal.dear]
    if question == "choices":
        rows = (0, state.sizes.budget)
        core = [goal for goal in core if goal.rows in rows and goal.kind != LABELLED]
    else:
        core = [goal for goal in core if goal.kind in ("zero-shot", "random")]
    return plan(state, core, costs, math.inf).seconds
