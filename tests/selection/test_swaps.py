"""The search by swaps on a model that is a formula, then on a tiny real one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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
from nacd.selection import choose, searching, sources, swapping
from nacd.selection import swaps as module
from nacd.selection.method import Task
from nacd.selection.searching import against
from nacd.selection.swapping import Search, Swapped, fill
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import RowNll

QUIET = Progress(quiet=True)
ROWS = 200


class Formula:
    """A training ends at the mean of its rows' points; the loss is the squared way to a goal.

    The derivative of the loss in a further row's weight is known; it is given with noise.
    """

    def __init__(self, noise: float = 0.0, sign: float = 1.0):
        self.points = np.random.default_rng(1).normal(size=(ROWS, 6))
        self.goal = np.full(6, 0.5)
        self.noise, self.sign, self.flops = noise, sign, 0.0
        self.asked: list[tuple[set[int], int, set[int]]] = []

    def _end(self, rows: Sequence[int], seed: int) -> np.ndarray:
        return self.points[list(rows)].mean(0) + np.random.default_rng(seed).normal(size=6) * 1e-3

    def nll(self, rows: Sequence[int], seed: int) -> RowNll:
        self.flops += 1
        return RowNll((self._end(rows, seed) - self.goal) ** 2, np.ones(6, dtype=np.int64))

    def worth(self, rows: Sequence[int], seed: int, beside: Sequence[int]) -> list[float]:
        self.asked.append((set(rows), seed, set(beside)))
        end = self._end(rows, seed)
        slopes = (self.points[list(beside)] - end) @ (2 * (self.goal - end))
        noise = np.random.default_rng((seed, 3)).normal(size=len(beside)) * slopes.std()
        return (self.sign * (slopes + self.noise * noise)).tolist()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round and check takes 30 seconds, whatever it takes."""
    ticks = itertools.count(0.0, 30.0)
    monkeypatch.setattr(searching.time, "perf_counter", lambda: next(ticks))


def search(source: Formula, folder: Path, **changes: Any) -> Search:
    values: dict[str, Any] = {
        "stratum": [i % 3 for i in range(ROWS)],
        "lengths": [10 + i % 3 for i in range(ROWS)],
        "most": None,
        "seed": 5,
        "folder": RunFolder(folder),
        "progress": QUIET,
    }
    sources = changes.pop("sources", [source])
    return Search(sources, range(40), range(ROWS), **(values | changes))


def loss(source: Formula, rows: Sequence[int]) -> float:
    return float(((source.points[list(rows)].mean(0) - source.goal) ** 2).mean())


def test_a_search_comes_near_the_goal(tmp_path: Path) -> None:
    source = Formula(noise=0.5)
    found = search(source, tmp_path).run(30)
    assert loss(source, found.rows) < 0.1 * loss(source, range(40))
    assert found.judged is not None
    assert found.judged.difference < 0
    assert found.judged.second == pytest.approx(loss(source, range(40)), rel=0.02)
    assert len(set(found.rows)) == 40
    assert found.changed == sum(a != b for a, b in enumerate(found.rows))
    # a place keeps its stratum
    assert [i % 3 for i in found.rows] == [i % 3 for i in range(40)]
    # what is weighed is not trained on, and every row of the set is weighed in time
    assert all(not trained & weighed for trained, _, weighed in source.asked)
    early = set().union(*(weighed for *_, weighed in source.asked[:20]))
    assert early >= set(range(40))
    assert len({seed for _, seed, _ in source.asked}) == len(source.asked)


def test_what_misleads_is_taken_back(tmp_path: Path) -> None:
    """Worth with the wrong sign makes every set worse; the first one is the result."""
    source = Formula(sign=-1.0)
    run = search(source, tmp_path)
    found = run.run(30)
    assert found.rows == list(range(40))
    assert (found.changed, found.judged) == (0, None)
    assert len(found.checks) > 3
    for check in found.checks:
        assert all(judged["difference"] >= 0 for judged in check["tried"])
    # half of the rounds' swaps are tried too, from the same seeds
    assert [len(check["tried"]) for check in found.checks[:2]] == [2, 2]
    assert run.share == swapping.SHARE / 2 ** len(found.checks)


def test_half_of_the_swaps_is_kept_where_all_of_them_are_too_many(tmp_path: Path) -> None:
    """A source whose loss rises once more than 8 rows are others."""
    source = Formula()
    nll = source.nll

    class Stiff(Formula):
        def nll(self, rows: Sequence[int], seed: int) -> RowNll:
            changed = sum(a != b for a, b in enumerate(rows))
            found = nll(rows, seed)
            return RowNll(found.nll + (9.0 if changed > 8 else 0.0), found.tokens)

    run = search(Stiff(), tmp_path)
    found = run.run(8)
    first = found.checks[0]
    whole, half = first["tried"]
    assert first["changed"] > 8 >= sum(a != b for a, b in enumerate(first["rows"])) > 0
    assert whole["difference"] > 0 > half["difference"]
    assert whole["second"] == half["second"], "the kept set is trained on once"
    assert run.checks[0]["rounds"] == swapping.ROUNDS
    assert 0 < found.changed <= 8


def test_a_set_in_which_nothing_changed_is_not_trained_on(tmp_path: Path) -> None:
    """No row outside is worthier than one inside: there is nothing to check."""

    class Content(Formula):
        def worth(self, rows: Sequence[int], seed: int, beside: Sequence[int]) -> list[float]:
            return [float(i < 40) for i in beside]

    found = search(Content(), tmp_path).run(10)
    assert found.rounds > 2 * swapping.ROUNDS
    assert (found.checks, found.judged, found.changed) == ([], None, 0)


def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(Formula(noise=0.5), tmp_path / "whole").run(20)
    source = Formula(noise=0.5)
    left = 7
    worth = source.worth

    def stopping(*args: Any) -> list[float]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return worth(*args)

    monkeypatch.setattr(source, "worth", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(source, tmp_path / "parts").run(20)
    again = Formula(noise=0.5)
    parts = search(again, tmp_path / "parts").run(20)
    assert parts == whole
    assert len(again.asked) == whole.rounds - 7
    # with more time, the same search goes on, and what is there is not made again
    more = Formula(noise=0.5)
    longer = search(more, tmp_path / "parts").run(40)
    assert longer.rounds > whole.rounds
    assert len(more.asked) == longer.rounds - whole.rounds
    assert longer.seconds <= 40 * 60
    assert whole.seconds <= 20 * 60


def test_a_limit_of_tokens_is_kept(tmp_path: Path) -> None:
    lengths = np.random.default_rng(7).integers(5, 30, ROWS).tolist()
    most = sum(lengths[:40])
    found = search(Formula(), tmp_path, lengths=lengths, most=most, stratum=[0] * ROWS).run(20)
    assert found.changed > 5
    assert sum(lengths[i] for i in found.rows) <= most


def test_two_sources_decide_together(tmp_path: Path) -> None:
    """One of them would go the other way: the set is good for both."""
    one, other = Formula(), Formula()
    other.goal = np.array([0.5, 0.5, 0.5, -0.5, -0.5, -0.5])
    found = search(one, tmp_path / "both", sources=[one, other]).run(30)
    alone = search(Formula(), tmp_path / "alone").run(30)
    start = loss(one, range(40)) + loss(other, range(40))
    both, single = (loss(one, x.rows) + loss(other, x.rows) for x in (found, alone))
    assert both < min(single, start)
    assert found.judged is not None
    assert 2 * found.judged.second == pytest.approx(start, rel=0.02)


def test_places_go_to_the_worthiest_of_their_stratum() -> None:
    scores = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.3, 5: 9.0, 6: 0.2}
    stratum = [0, 0, 0, 0, 0, 1, 0]
    # 2 stays, 1 gives way to 3; 5 has another stratum
    assert fill([1, 2], [3, 4, 5, 6], scores.__getitem__, stratum) == {1: 3, 2: 2}


def test_sets_are_compared_pair_by_pair() -> None:
    tokens = np.array([2, 2])

    def nll(*values: float) -> RowNll:
        return RowNll(np.array(values), tokens)

    found = against([[nll(2.0, 4.0), nll(1.0, 3.0)]], [[nll(3.0, 5.0), nll(3.0, 5.0)]])
    assert (found.first, found.second) == (1.25, 2.0)
    assert found.difference == pytest.approx(-0.75)
    assert found.interval == pytest.approx(12.706 * 0.25, rel=1e-3)
    assert found.row_error == 0.0  # both rows differ alike


def task(prepared: Prepared, folder: Path, **changes: Any) -> Task:
    recipe = Recipe(batch_size=4, epochs=3, learning_rate=5e-3)
    config = SelectionConfig(judge="target", minutes=10, **changes)
    return Task(prepared, recipe, config, 0, folder, QUIET, parse_budget("12"))


def test_a_model_finds_the_rows_that_answer_as_the_target_does(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = choose(task(prepared, tmp_path), "swaps")
    start = choose(task(prepared, tmp_path / "random"), "random").indices
    right = [sum(i % 3 == 0 for i in rows) for rows in (found.indices, start)]
    assert right[0] > right[1] + 3
    assert len(set(found.indices)) == 12
    assert found.ranking.flops > 0
    # rows of another search are not taken for one's own
    with pytest.raises(UserError, match=r"search\.json: made with other settings"):
        choose(replace(task(prepared, tmp_path), budget=parse_budget("10")), "swaps")


def test_a_search_begins_with_what_another_method_chose(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swapping, "SHARE", 0.0)
    monkeypatch.setattr(Search, "_last", lambda *_: None)
    monkeypatch.setattr(
        Search, "run", lambda self, _: Swapped(self.start, 0, 0, None, [], {}, 0, 0)
    )
    longest = choose(task(prepared, tmp_path / "a"), "longest").indices
    found = choose(task(prepared, tmp_path / "b", swaps_from="longest"), "swaps").indices
    assert sorted(found) == sorted(longest)
    with pytest.raises(UserError, match=r"--swaps-from swaps: give one of random, best-of"):
        choose(task(prepared, tmp_path / "c", swaps_from="swaps"), "swaps")


def test_two_models_weigh_and_judge(
    prepared: Prepared, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The second has its own tokens, and a rate of its own."""
    second = str(tiny_folder("gemma3"))
    asked = task(prepared, tmp_path / "both", also=(second,), also_rates=(1e-3,))
    other: list[Any] = []

    class Spy(module.ModelSource):
        def __init__(self, *args: Any):
            super().__init__(*args)
            other.append(self)

        def worth(self, rows: Sequence[int], seed: int, beside: Sequence[int]) -> list[float]:
            self.weighed = super().worth(rows, seed, beside)
            return self.weighed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ModelSource", Spy)
        patch.setattr(sources, "ModelSource", Spy)
        choose(asked, "swaps")
    first, last = other
    assert last.model.config.model == second
    assert (first.recipe.learning_rate, last.recipe.learning_rate) == (5e-3, 1e-3)
    assert len(first.rows) == len(last.rows) == 48
    assert len(first.judges) == len(last.judges)
    assert first.weighed != last.weighed
    with pytest.raises(UserError, match=r"--also-rates 0\.001: give one for each of the 0 "):
        choose(task(prepared, tmp_path / "none", also_rates=(1e-3,)), "swaps")


def test_too_little_to_swap(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--budget 1 is one row"):
        choose(replace(task(prepared, tmp_path), budget=parse_budget("1")), "swaps")
    with pytest.raises(UserError, match="takes all of the 48 rows"):
        choose(
            replace(task(prepared, tmp_path), budget=parse_budget("48"), folder=tmp_path / "all"),
            "swaps",
        )
