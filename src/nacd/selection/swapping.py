"""A search over sets of whole rows, by small swaps; it knows no model.

    round   leave a share of the set out and train on the rest; weigh the rows left out and some
            candidates alike, at weight 0 in the last steps of that training; fill the free places
            with the worthiest of both, each by a row with a response about as long
    check   after some rounds, train on the set as it is and as it was at the last check, each from
            the same fresh seeds; keep the better one by the loss on the judging rows; if that is
            the old one, try the set half-way between them, and make the rounds' shares smaller

A row's worth is only a derivative: it holds while few rows change. Sets made of the worthiest rows
at once train far worse than random ones, which is why a round swaps few rows and weighs anew
(docs/results.md, "What a row is worth late in a tuned training"). Rows of the set are weighed
outside it, as the candidates are, because a row that has been trained on has little gradient left.

The search may end at any time. It ends with a check of its own, of the first set against the kept
one by fresh seeds, and the better of the two is the result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from nacd.selection.searching import Judged, Searching, Trained, against
from nacd.store.cache import Cache
from nacd.terminal.progress import Progress

SHARE = 1 / 16
"""Share of the set that a round leaves out. After an eighth, what rows are worth has turned about:
the worths of one round and the next then correlate at -0.3 to -0.5 (docs/results.md)."""
CANDIDATES = 192
"""Rows from outside the set that a round weighs; half of them the worthiest known, half random."""
ROUNDS = 6
"""Rounds between two checks."""
TRAININGS = 1
"""Trainings of each of the two sets in a check, from the same seed. Trainings on one set differ by
0.003 to 0.008 nats per token, sets by 0.02 (docs/results.md)."""
LAST = 4
"""Trainings of each of the two sets in the last check."""
FADING = 0.5
"""Weight of a row's earlier worth, from one weighing to the next."""
CHECK_SEED = 500_000
"""Checks train from seeds 500000, 500001, ... beyond the search's own; rounds from 0, 1, ..."""
LAST_SEED = 900_000


class Source(Trained, Protocol):
    """What trains on rows and weighs them: a model with a recipe. Rows are numbers from 0."""

    def worth(self, rows: Sequence[int], seed: int, beside: Sequence[int]) -> list[float]:
        """What each of the rows `beside` is worth to a training on `rows`; higher is better.

        Comparable between the rows of one call alone.
        """
        ...


@dataclass(frozen=True)
class Swapped:
    """Where a search ended."""

    rows: list[int]
    """The set, in the places of the rows that it began with."""
    changed: int
    """Rows that are others than at the start."""
    rounds: int
    judged: Judged | None
    """The set against the first one, by the last check; None: nothing was kept."""
    checks: list[dict[str, Any]]
    """Every check: rounds so far, what was tried, the last of it the one that decided."""
    scores: dict[int, float]
    """Latest mean worth of every row that was weighed."""
    seconds: float
    flops: float


@dataclass
class Memory:
    """What rows were worth when they were weighed, the later the more it counts."""

    sums: dict[int, float] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)

    def add(self, row: int, worth: float) -> None:
        """Take one more weighing of a row."""
        self.sums[row] = worth + FADING * self.sums.get(row, 0.0)
        self.weights[row] = 1.0 + FADING * self.weights.get(row, 0.0)

    def score(self, row: int) -> float:
        """The mean worth of a row that was weighed."""
        return self.sums[row] / self.weights[row]


def fill(
    left_out: Sequence[int],
    candidates: Sequence[int],
    score: Callable[[int], float],
    stratum: Sequence[int],
) -> dict[int, int]:
    """Who takes the places of the rows left out: the worthiest of them and of the candidates.

    Args:
        left_out: rows of the set.
        candidates: rows outside it.
        score: of a row, higher is better.
        stratum: of every row; a place goes to a row of its stratum.

    Returns:
        For every row left out its successor, which may be itself.
    """
    successors: dict[int, int] = {}
    for number in sorted({stratum[i] for i in left_out}):
        old = [i for i in left_out if stratum[i] == number]
        others = [i for i in candidates if stratum[i] == number]
        best = sorted([*old, *others], key=score, reverse=True)[: len(old)]
        staying = set(best) & set(old)
        newcomers = [i for i in best if i not in staying]
        leaving = [i for i in old if i not in staying]
        successors |= {i: i for i in staying} | dict(zip(leaving, newcomers, strict=True))
    return successors


class Search(Searching[Source]):
    """The state of a search; every round and check is one file of its folder, so that it goes on.

    Args:
        sources: trained on the same rows; worth and loss are averaged over them.
        start: the rows that it begins with.
        pool: rows that may come in, without those that judge.
        stratum: of every row, by its number; a row is swapped for one of its stratum.
        lengths: tokens of every row.
        most: tokens that the set may have; None: no limit.
        seed: of what is drawn, and of all trainings.
        folder: keeps rounds and checks.
        progress: display.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        start: Sequence[int],
        pool: Sequence[int],
        *,
        stratum: Sequence[int],
        lengths: Sequence[int],
        most: int | None,
        seed: int,
        folder: Cache,
        progress: Progress,
    ):
        super().__init__(sources, seed, folder)
        self.start, self.pool = list(start), pool
        self.stratum, self.lengths, self.most = stratum, lengths, most
        self.progress = progress
        self.kept, self.now = list(self.start), list(self.start)
        self.weighed = [-1] * len(self.start)
        """By place, the round in which it was weighed last."""
        self.memory = Memory()
        self.since: list[list[int]] = []
        """The set after each round since the last check."""
        self.rounds, self.checks, self.share = 0, list[dict[str, Any]](), SHARE
        self.checked = 0
        """Rounds at the last check, or when there was none to make."""
        self.round, self.training = 0.0, 0.0
        """Seconds of the longest round, and of a training with its judging."""
        self.nll = math.nan

    def run(self, minutes: float) -> Swapped:
        """Search until the time is used up, that of earlier calls with the same folder included."""
        limit = 60 * minutes
        with self.progress.stage("swapping rows", math.ceil(minutes)) as tick:
            while self._step(limit):
                tick(min(math.ceil(minutes), round(self.seconds / 60)), self.nll)
        last = self._last(limit) if self.kept != self.start else None
        if last is not None and last.difference >= 0:
            self.kept = list(self.start)
        changed = sum(a != b for a, b in zip(self.kept, self.start, strict=True))
        scores = {row: self.memory.score(row) for row in self.memory.sums}
        return Swapped(
            self.kept, changed, self.rounds, last, self.checks, scores, self.seconds, self.flops
        )

    def _step(self, limit: float) -> bool:
        """One round or check; False: there is no time for it."""
        since = self.rounds - self.checked
        check, ahead = f"checks/{self.rounds:04d}", f"rounds/{self.rounds:04d}"

        def room(name: str, seconds: float) -> bool:
            reserve = 2 * self._trainings_of_last(limit) * self.training
            return self._there(name) or self.seconds + seconds + reserve <= limit

        due = 2 * TRAININGS * self.training
        full = since == ROUNDS or self._there(check) or not room(ahead, self.round + due)
        if since and full and self.now == self.kept:  # nothing to compare
            self.checked, self.since = self.rounds, []
            return True
        if since and full:
            if not room(check, due):
                return False
            self._take_check(self._check(check))
            return True
        if self.rounds and not room(ahead, self.round + due):
            return False
        found = self._round(ahead)
        self.round = max(self.round, found["seconds"])
        self.training = self.training or found["seconds"] / 2
        for place, row in found["successors"]:
            self.now[place] = row
        self.since.append(list(self.now))
        self.rounds += 1
        return True

    def _take_check(self, check: dict[str, Any]) -> None:
        self.training = check["seconds"] / (TRAININGS * (1 + len(check["tried"])))
        self.checks.append(check)
        self.checked = self.rounds
        *_, judged = tried = [Judged(**judged) for judged in check["tried"]]
        if judged.difference < 0:
            self.kept = list(check["rows"])
        if len(tried) > 1 or judged.difference >= 0:  # too much at once
            self.share /= 2
        self.now, self.since = list(self.kept), []
        self.nll = min(judged.first, judged.second)
        kept = "kept" if judged.difference < 0 else "taken back"
        if len(tried) > 1:
            kept = f"not the whole ({tried[0].difference:+.3f}), but half of the rounds: {kept}"
        self.progress.say(
            f"round {self.rounds}: {check['changed']} of {len(self.now)} rows swapped since the "
            f"last check, NLL {judged.first:.3f} against {judged.second:.3f} without "
            f"({judged.difference:+.3f}): {kept}"
        )

    def _trainings_of_last(self, limit: float) -> int:
        """Trainings of each set in the last check: `LAST`, or what a quarter of the time allows."""
        affordable = int(limit / 4 / (2 * self.training)) if self.training else LAST
        return max(1, min(LAST, affordable))

    def _there(self, name: str) -> bool:
        return (self.folder.path / f"{name}.json").is_file()

    def _round(self, name: str) -> dict[str, Any]:
        """Weigh a share of the set and candidates, and name who takes which place."""
        now, inside = self.now, set(self.now)
        generator = np.random.default_rng((self.seed, self.rounds, 61))
        ties = generator.permutation(len(now))
        count = max(1, round(self.share * len(now)))
        places = sorted(range(len(now)), key=lambda p: (self.weighed[p], ties[p]))[:count]
        left_out, rest = [now[p] for p in places], [*now]
        for place in sorted(places, reverse=True):
            del rest[place]
        outside = [i for i in self.pool if i not in inside]
        outside = [outside[i] for i in generator.permutation(len(outside))]
        most = min(CANDIDATES, max(1, len(outside) // 2))
        worthiest = sorted(
            (i for i in outside if i in self.memory.sums), key=self.memory.score, reverse=True
        )[: most // 2]
        fresh = [i for i in outside if i not in set(worthiest)][: most - len(worthiest)]
        beside = [*left_out, *fresh, *worthiest]

        def make() -> dict[str, Any]:
            worths = []
            seed = self.seed + self.rounds
            for found in self.over(self.sources, lambda s: s.worth(rest, seed, beside)):
                worth = np.asarray(found)
                yardstick = worth[len(left_out) : len(left_out) + len(fresh)]
                if len(yardstick) < 2:
                    yardstick = worth
                worths.append((worth - yardstick.mean()) / (yardstick.std() + 1e-12))
            worth = np.mean(worths, axis=0)
            return {"left_out": left_out, "beside": beside, "worth": [float(x) for x in worth]}

        found = self.once(name, make)
        for row, worth in zip(found["beside"], found["worth"], strict=True):
            self.memory.add(row, worth)
        for place in places:
            self.weighed[place] = self.rounds
        successors = fill(left_out, [*fresh, *worthiest], self.memory.score, self.stratum)
        return found | {"successors": self._affordable(places, successors)}

    def _affordable(
        self, places: Sequence[int], successors: dict[int, int]
    ) -> list[tuple[int, int]]:
        """The swaps (place, row), without the least gains where there were too many tokens."""
        now = self.now
        swaps = [(p, successors[now[p]]) for p in places if successors[now[p]] != now[p]]
        if self.most is None:
            return swaps
        swaps.sort(key=lambda s: self.memory.score(s[1]) - self.memory.score(now[s[0]]))
        more = {s: self.lengths[s[1]] - self.lengths[now[s[0]]] for s in swaps}
        spare = self.most - sum(self.lengths[i] for i in now)
        while sum(more.values()) > spare:
            del more[next(swap for swap in more if more[swap] > 0)]
        return [*more]

    def _check(self, name: str) -> dict[str, Any]:
        """The set as it is against the kept one; then, if it is worse, the set half-way."""
        first = CHECK_SEED + TRAININGS * self.rounds
        seeds = range(first, first + TRAININGS)

        def make() -> dict[str, Any]:
            old = self.trained(self.kept, seeds)
            tried: list[Judged] = []
            rows = self.now
            for rows in dict.fromkeys(map(tuple, (self.now, self.since[len(self.since) // 2 - 1]))):
                tried.append(against(self.trained(rows, seeds), old))
                if tried[-1].difference < 0:
                    break
            return {
                "tried": [asdict(judged) for judged in tried],
                "rows": list(rows),
                "rounds": self.rounds,
                "changed": sum(a != b for a, b in zip(self.now, self.kept, strict=True)),
            }

        return self.once(name, make)

    def _last(self, limit: float) -> Judged:
        """The kept set against the first one."""
        count = self._trainings_of_last(limit)
        digest = hashlib.sha256(repr((self.kept, count)).encode()).hexdigest()[:12]

        def make() -> dict[str, Any]:
            seeds = range(LAST_SEED, LAST_SEED + count)
            found = against(self.trained(self.kept, seeds), self.trained(self.start, seeds))
            return {"judged": asdict(found)}

        return Judged(**self.once(f"checks/last-{digest}", make)["judged"])
