"""What is trained, in which order, and that no more is begun than fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nacd.checking.plan import (
    FIRST,
    LABELLED,
    MANY,
    MORE,
    TRIES,
    Costs,
    Job,
    Sizes,
    State,
    goals,
    next_job,
    plan,
    sizes_of,
    still_asked,
)
from nacd.checking.said import plan_lines
from nacd.config.recipe import Recipe

SIZES = Sizes(budget=100, total=2000, smaller=25, larger=400)
METHODS = ("rds+", "best-of", "trajectory")
COSTS = Costs(1e-3, 4e-4, 10.0, 4000, 2000, {"rds+": 30.0, "trajectory": 500.0})


def state() -> State:
    return State(SIZES, 4.0)


def result(nll: float, diverged: bool = False) -> Mapping[str, Any]:
    """A training whose validation NLL is so much, the same for every row."""
    rows = 50
    return {
        "validation": None if diverged else [nll + 0.001 * (i % 2) for i in range(rows)],
        "tokens": [1] * rows,
        "diverged": diverged,
    }


def test_sizes() -> None:
    recipe = Recipe(batch_size=8, epochs=4)
    assert sizes_of(100, 2000, recipe) == SIZES
    assert sizes_of(100, 2000, recipe).all == [25, 100, 400, 2000]
    assert sizes_of(100, 700, recipe).larger == 0, "close to all rows"
    assert sizes_of(100, 800, recipe).larger == 400
    assert sizes_of(3, 50, recipe).smaller == 0
    one = Recipe(batch_size=8, epochs=1)
    assert sizes_of(32, 2000, one).smaller == 0, "a single step of a warm-up moves nothing"
    assert sizes_of(36, 2000, one).smaller == 9


def test_with_time_enough_everything_is_done_once() -> None:
    made = plan(state(), goals(SIZES, METHODS), COSTS, math.inf)
    assert made.left_out == ()
    jobs = [job for job, _ in made.jobs]
    assert len(set(jobs)) == len(jobs)
    trained = Counter((job.kind, job.rows) for job in jobs if not job.choosing)
    assert trained["random", 100] == MANY >= TRIES
    assert trained["rds+", 100] == trained["best-of", 100] == MORE
    assert trained["trajectory", 100] == FIRST
    assert trained["zero-shot", 0] == 1
    assert made.seconds == pytest.approx(sum(COSTS.seconds(job, state()) for job in jobs))
    # what a choice is made of comes before it
    place = {job: number for number, job in enumerate(jobs)}
    for method in ("rds+", "trajectory"):
        assert place[Job(method, 100, 0.0, -1)] < place[Job(method, 100, 4.0, 0)]
    draws = [place[Job("random", 100, 4.0, k)] for k in range(TRIES)]
    assert max(draws) < place[Job("best-of", 100, 4.0, 0)]
    assert jobs[-FIRST - 1].kind == "trajectory", "what is dear comes last"


@pytest.mark.parametrize("seed", range(20))
def test_it_never_takes_more_than_there_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    left = float(generator.uniform(0, 400))
    wanted = goals(SIZES, METHODS)
    made = plan(state(), wanted, COSTS, left)
    assert made.seconds <= left
    # and leaves nothing undone that would fit
    done = state()
    for job, _ in made.jobs:
        assert next_job(done, wanted, COSTS, math.inf) is not None
        done.results[job] = {}
    assert next_job(done, wanted, COSTS, left - made.seconds) is None
    for goal, seconds in made.left_out:
        if goal.whole:
            assert seconds > left - made.seconds


def test_a_choice_is_begun_only_if_it_can_be_judged() -> None:
    wanted = goals(SIZES, ("rds+", "best-of"))
    for left in np.linspace(1, 200, 60):
        jobs = [job for job, _ in plan(state(), wanted, COSTS, float(left)).jobs]
        counts = Counter(job.kind for job in jobs if not job.choosing)
        chosen = any(job.choosing for job in jobs)
        assert counts["rds+"] >= FIRST if chosen else not counts["rds+"]
        assert counts["best-of"] in (0, *range(FIRST, MORE + 1))
        assert counts["random"] >= min(1, counts["rds+"])


def test_without_three_random_draws_nothing_else_is_begun() -> None:
    wanted = goals(SIZES, METHODS)
    one = COSTS.seconds(Job("random", 100, 4.0, 0), state())
    small = COSTS.seconds(Job("random", 25, 4.0, 0), state())
    assert small < 0.9 * one
    first = COSTS.seconds(Job("zero-shot", 0, 0.0, 0), state())
    jobs = [job for job, _ in plan(state(), wanted, COSTS, first + 1.9 * one).jobs]
    assert [job.kind for job in jobs] == ["zero-shot", "random"]


def test_what_is_done_is_not_planned_again() -> None:
    wanted = goals(SIZES, METHODS)
    whole = plan(state(), wanted, COSTS, 100.0)
    half = State(SIZES, 4.0, {job: {} for job, _ in whole.jobs[:4]})
    rest = plan(half, wanted, COSTS, 100.0 - sum(s for _, s in whole.jobs[:4]))
    assert rest.jobs == whole.jobs[4:]
    assert plan(State(SIZES, 4.0, {job: {} for job, _ in plan(
        state(), wanted, COSTS, math.inf).jobs}), wanted, COSTS, math.inf).jobs == ()  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "losses", "best", "longer"),
    [
        (2000, {}, 1.0, 1.0),
        (2000, {1.0: 2.0}, 1.0, 2.0),
        (2000, {1.0: 2.0, 2.0: 2.1}, 1.0, None),
        (2000, {1.0: 2.0, 2.0: 2.0}, 1.0, None),
        (2000, {1.0: 2.0, 2.0: 1.9}, 2.0, 4.0),
        (2000, {1.0: 2.0, 2.0: 1.9, 4.0: 1.8}, 4.0, None),
        (400, {}, 1.0, 1.0),
        (25, {}, 4.0, 4.0),
        (25, {4.0: 2.0, 8.0: 1.9}, 8.0, 16.0),
        (25, {4.0: 2.0, 8.0: 1.9, 16.0: 1.8}, 16.0, None),
        (100, {}, 4.0, None),
    ],
)
def test_passes_are_doubled_while_that_helps(
    rows: int, losses: dict[float, float], best: float, longer: float | None
) -> None:
    known = {Job("random", rows, passes, 0): result(nll) for passes, nll in losses.items()}
    assert State(SIZES, 4.0, known).passes(rows) == (best, longer)


def test_a_larger_set_takes_no_fewer_steps_than_the_budget() -> None:
    assert State(SIZES, 8.0).passes(400) == (2.0, 2.0)
    assert State(SIZES, 1.0).passes(2000) == (1.0, 1.0)
    assert State(Sizes(100, 150, 25, 0), 4.0).passes(150) == (3.0, 3.0)


def test_passes_after_a_training_that_diverged() -> None:
    known = {
        Job("random", 2000, 1.0, 0): result(2.0),
        Job("random", 2000, 2.0, 0): result(0.0, diverged=True),
    }
    assert State(SIZES, 4.0, known).passes(2000) == (1.0, None)


def test_the_best_draw_is_the_best_on_validation_rows() -> None:
    losses = [2.4, 2.1, 2.3, 2.0, 2.2, 2.5]
    done = {Job("random", 100, 4.0, k): result(nll) for k, nll in enumerate(losses)}
    done[Job("random", 100, 4.0, 3)] = result(0.0, diverged=True)
    found = State(SIZES, 4.0, done)
    assert found.best_draw() == 1
    assert found.drawn()
    assert [found.needs_validation(Job("random", 100, 4.0, k)) for k in (0, 5, 6)] == [1, 1, 0]
    assert [found.needs_validation(Job("random", 25, 4.0, k)) for k in (0, 1)] == [1, 0]
    lost = {job: result(0.0, diverged=True) for job in done}
    (goal,) = [g for g in goals(SIZES, METHODS) if g.kind == "best-of" and g.trainings == FIRST]
    assert State(SIZES, 4.0, lost).missing(goal) == [], "there is no best draw to train on"


def test_the_time_still_asked_leaves_out_what_is_dear() -> None:
    wanted = goals(SIZES, METHODS)
    made = plan(state(), wanted, COSTS, math.inf)

    def of(*kinds: str, rows: tuple[int, ...]) -> float:
        return sum(s for job, s in made.jobs if job.kind in kinds and job.rows in rows)

    choices = of("zero-shot", "random", "rds+", "best-of", rows=(0, 100))
    assert still_asked(state(), wanted, COSTS, "choices") == pytest.approx(choices)
    size = of("zero-shot", "random", rows=(0, 25, 100, 400, 2000))
    assert still_asked(state(), wanted, COSTS, "size") == pytest.approx(size)
    done = State(SIZES, 4.0, {job: {} for job, _ in made.jobs})
    assert still_asked(done, wanted, COSTS, "size") == 0.0


def test_the_plan_is_read_in_80_columns() -> None:
    for left in (0.0, 10.0, 100.0, 1e6):
        lines = plan_lines(plan(state(), goals(SIZES, METHODS), COSTS, left))
        assert max(map(len, lines)) <= 80
        assert bool(lines)
    assert "no time for" in " ".join(plan_lines(plan(state(), goals(SIZES, METHODS), COSTS, 0.0)))


def test_soft_labels_come_when_the_best_training_on_all_rows_is_known() -> None:
    wanted = goals(SIZES, METHODS)
    jobs = [job for job, _ in plan(state(), wanted, COSTS, math.inf).jobs]
    first = next(place for place, job in enumerate(jobs) if job.kind == LABELLED)
    tried = [place for place, job in enumerate(jobs) if job.rows == 2000 and job.number == 0]
    assert len(tried) == 2, "one pass, then two"
    assert max(tried) < first
    assert not [job for job, _ in plan(state(), goals(SIZES, METHODS, False), COSTS, 1e9).jobs
                if job.kind == LABELLED]  # fmt: skip
    goal = next(goal for goal in wanted if goal.kind == LABELLED)
    own = [Job(LABELLED, 100, 4.0, k) for k in range(FIRST)]
    here = state()
    one, two = (Job("random", 2000, passes, 0) for passes in (1.0, 2.0))
    assert here.missing(goal) == [one, *own]
    assert here.teacher() is None
    here.results[one] = result(2.0)
    assert here.missing(goal) == [two, *own]
    assert here.teacher() is None, "twice as many passes might be better"
    here.results[two] = result(2.1)
    assert here.missing(goal) == own
    assert here.teacher() == one
    here.results[two] = result(1.9)
    here.results[Job("random", 2000, 4.0, 0)] = result(1.95)
    assert here.teacher() == two
    assert not here.needs_validation(own[0])


def test_without_a_teacher_there_are_no_soft_labels() -> None:
    here = state()
    goal = next(goal for goal in goals(SIZES, ()) if goal.kind == LABELLED)
    here.results[Job("random", 2000, 1.0, 0)] = result(0.0, diverged=True)
    here.results[Job("random", 2000, 2.0, 0)] = result(0.0, diverged=True)
    assert here.missing(goal) == []
    assert here.teacher() is None
