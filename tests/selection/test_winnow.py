"""The search by elimination on rows whose effects are known, then on a tiny real model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nacd.config import SelectionConfig
from nacd.config.budget import parse_budget
from nacd.config.recipe import Recipe
from nacd.errors import UserError
from nacd.model.prepare import Prepared
from nacd.selection import choose, winnowing
from nacd.selection.method import Task
from nacd.selection.winnowing import Winnow
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import RowNll

QUIET = Progress(quiet=True)
ROWS, SIZE = 600, 20


class Effects:
    """The loss after a training is the mean effect of its rows, and a little of its seed's."""

    def __init__(self, noise: float = 0.01):
        self.effects = np.random.default_rng(1).normal(size=ROWS)
        self.noise, self.flops = noise, 0.0
        self.asked: list[tuple[list[int], int]] = []

    def of(self, rows: Sequence[int]) -> float:
        return 2.0 + float(self.effects[list(rows)].mean())

    def nll(self, rows: Sequence[int], seed: int) -> RowNll:
        self.asked.append((list(rows), seed))
        self.flops += 1
        luck = np.random.default_rng((seed, sum(rows))).normal() * self.noise
        return RowNll(np.full(4, self.of(rows) + luck), np.ones(4, dtype=np.int64))


def search(source: Any, folder: Path, **changes: Any) -> Winnow:
    """Every training, and every last check, takes 30 seconds, whatever it takes."""
    ticks = itertools.count(0.0, 30.0)
    values: dict[str, Any] = {"seed": 5, "folder": RunFolder(folder), "progress": QUIET}
    values["clock"] = lambda: next(ticks)
    sources = changes.pop("sources", [source])
    take = changes.pop("take", lambda order: list(order[:SIZE]))
    return Winnow(sources, range(ROWS), take, **(values | changes))


def test_it_is_better_than_the_best_of_as_many_random_sets(tmp_path: Path) -> None:
    source = Effects()
    run = search(source, tmp_path)
    found = run.run(40)
    # 80 trainings of 30 seconds, less the last check's nine: 71 of them, a fifth of that in sets
    assert found.pool == (round(71 / 5 * SIZE), SIZE)
    assert 60 <= found.sets <= 71
    generator = np.random.default_rng(3)
    random = [source.of(generator.permutation(ROWS)[:SIZE].tolist()) for _ in range(found.sets)]
    assert source.of(found.rows) < min(random)
    assert source.of(found.rows) < source.of(range(SIZE)) - 2 * found.spread
    assert len(set(found.rows)) == SIZE
    assert found.judged is not None
    assert found.judged.difference == pytest.approx(
        source.of(found.rows) - source.of(range(SIZE)), abs=0.03
    )
    # a row that was in more sets has a score nearer its effect
    kept = np.array([run.score(row) for row in run.left])
    assert np.corrcoef(kept, -source.effects[run.left])[0, 1] > 0.3


def test_sets_of_a_deal_share_a_seed_and_have_every_row(tmp_path: Path) -> None:
    source = Effects()
    search(source, tmp_path).run(40)
    assert source.asked[0] == (list(range(SIZE)), 5), "the first set is the random draw"
    first = [set(rows) for rows, seed in source.asked if seed == 5]
    assert set().union(*first) == set(range(284))
    assert all(len(rows) == SIZE for rows in first)


def test_a_stopped_search_goes_on(tmp_path: Path) -> None:
    whole = search(Effects(), tmp_path / "whole").run(30)
    stopped = Effects()
    real, left = stopped.nll, itertools.count()

    def stops(rows: Sequence[int], seed: int) -> RowNll:
        if next(left) == 25:
            raise KeyboardInterrupt
        return real(rows, seed)

    stopped.nll = stops  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        search(stopped, tmp_path / "stopped").run(30)
    again = Effects()
    found = search(again, tmp_path / "stopped").run(30)
    assert found.rows == whole.rows
    assert len(again.asked) == whole.sets + 3 * winnowing.LAST - 25
    assert found.seconds == pytest.approx(whole.seconds)


def test_it_never_ends_worse_than_the_first_draw(tmp_path: Path) -> None:
    """Every set but the first is worse in the last check: luck of the deals, nothing else."""

    class Luck(Effects):
        def nll(self, rows: Sequence[int], seed: int) -> RowNll:
            first = rows[:SIZE] == list(range(SIZE))
            late = seed >= winnowing.LAST_SEED
            luck = float(np.random.default_rng((seed, sum(rows))).normal())
            return RowNll(np.full(4, 2.0 + (0.0 if late and first else abs(luck))), np.ones(4))

    found = search(Luck(), tmp_path).run(20)
    assert (found.kind, found.judged) == ("first", None)
    assert found.rows == list(range(SIZE))


def test_two_sources_decide_together(tmp_path: Path) -> None:
    one, other = Effects(), Effects()
    other.effects = np.random.default_rng(2).normal(size=ROWS)
    alone = search(one, tmp_path / "alone").run(40).rows
    both = search(one, tmp_path / "both", sources=[one, other]).run(40).rows
    assert other.of(both) < other.of(range(SIZE))
    assert one.of(both) < one.of(range(SIZE))
    assert other.of(both) < other.of(alone)


def test_a_budget_of_tokens_deals_sets_of_it(tmp_path: Path) -> None:
    source = Effects()

    def take(order: Sequence[int]) -> list[int]:
        taken, tokens = [], 0
        for row in order:
            tokens += 5 + row % 7
            if tokens > 160:
                break
            taken.append(row)
        return taken

    found = search(source, tmp_path, take=take).run(40)
    assert sum(5 + row % 7 for row in found.rows) <= 160
    assert source.of(found.rows) < source.of(take(range(ROWS)))


def task(prepared: Prepared, folder: Path, **changes: Any) -> Task:
    recipe = Recipe(batch_size=4, epochs=2, learning_rate=5e-3)
    config = SelectionConfig(judge="target", minutes=0.5, **changes)
    return Task(prepared, recipe, config, 0, folder, QUIET, parse_budget("12"))


def test_a_model_finds_the_rows_that_answer_as_the_target_does(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = choose(task(prepared, tmp_path), "winnow")
    start = choose(task(prepared, tmp_path / "random"), "random").indices
    right = [sum(i % 3 == 0 for i in rows) for rows in (found.indices, start)]
    assert right[0] > right[1] + 2
    assert len(set(found.indices)) == 12
    assert found.ranking.flops > 0
    assert set(found.ranking.measured) > {"search", "spread of random sets", "chosen"}
    # rows of another search are not taken for one's own
    with pytest.raises(UserError, match=r"search\.json: made with other settings"):
        choose(replace(task(prepared, tmp_path), budget=parse_budget("10")), "winnow")
