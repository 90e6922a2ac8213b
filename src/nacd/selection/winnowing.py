"""A search over sets of whole rows, by elimination; it knows no model and no gradient.

    deal    shuffle the rows that are left, cut them into sets of the budget's size, train on each
            from the same seed, and judge; a row's score is the mean, over the sets that it stood
            in, of how much lower the loss was than its deal's mean
    drop    keep the rows with the best scores: the pool shrinks from several times the budget to
            the budget, by the same factor for the same time

The loss after training on a random set depends far more on the set than on initial values and order
(docs/results.md, "by elimination"), and it says a little about each of the set's rows. Were a
set's loss the mean of its rows' effects, n trainings on sets of B rows would tell a row's effect
with correlation sqrt(n_i / B), n_i the sets that it stood in; dropping the worst early spends the
later trainings on fewer rows. (Effects of rows from many trainings on random subsets: datamodels,
arXiv 2202.00622; the same for the same time at every size: sequential halving, Karnin et al. 2013.)

It ends with trainings from fresh seeds on what is left, on the best set dealt and on the first one,
which is a random draw; the best of the three is the result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from nacd.selection.searching import Judged, Searching, Trained, against
from nacd.store.cache import Cache
from nacd.terminal.progress import Progress

DEALT = 5
"""Sets that are trained on for every time that the pool is as large as a set, at the start."""
LARGEST = 16
"""Most times that the pool is as large as a set."""
LAST = 3
"""Trainings of each set in the last check, where a quarter of the time allows it."""
LAST_SEED = 900_000
"""The last check trains from seeds 900000, 900001, ... beyond the search's own."""


@dataclass(frozen=True)
class Winnowed:
    """Where a search ended."""

    rows: list[int]
    """The set."""
    kind: str
    """`left`: what elimination left; `dealt`: the best set dealt; `first`: the first draw."""
    judged: Judged | None
    """The set against the first draw, by the last check; None: it is the first draw."""
    sets: int
    """Sets trained on, without the last check's."""
    pool: tuple[int, int]
    """Rows in play at first and at the end."""
    spread: float
    """Standard deviation of the first deal's losses: what the luck of a draw is worth."""
    scores: dict[int, float]
    """By row, how much lower than its deals' mean the loss was; in nats per token."""
    seconds: float
    flops: float


class Winnow(Searching[Trained]):
    """The state of a search; every training and deal is one file of its folder.

    Args:
        sources: trained on the same rows; their losses are averaged.
        pool: rows that may be chosen, in random order.
        take: the set that the budget takes from an order of rows.
        seed: of what is dealt, and of all trainings.
        folder: keeps trainings and deals.
        progress: display.
        clock: seconds; None: of this process.
    """

    def __init__(
        self,
        sources: Sequence[Trained],
        pool: Sequence[int],
        take: Callable[[Sequence[int]], list[int]],
        *,
        seed: int,
        folder: Cache,
        progress: Progress,
        clock: Callable[[], float] | None = None,
    ):
        super().__init__(sources, seed, folder, clock)
        self.pool, self.take, self.progress = list(pool), take, progress
        self.left: list[int] = []
        self.sums: dict[int, float] = {}
        self.counts: dict[int, int] = {}
        self.best: tuple[float, list[int]] = (math.inf, [])
        """Lowest loss, and the set that it is of."""
        self.sets, self.deals, self.first_size = 0, 0, 0
        self.spread, self.each = math.nan, 0.0

    def run(self, minutes: float) -> Winnowed:
        """Search until the time is used up, that of earlier calls with the same folder included."""
        limit = 60 * minutes
        first = self.take(self.pool)
        self.each = self.once("sets/0000-00", lambda: self._trained(first, 0))["seconds"]
        self.seconds = self.flops = 0.0  # the first deal has it again
        last = max(1, min(LAST, int(limit / 4 / (3 * self.each))))
        limit -= 3 * last * self.each
        times = min(LARGEST, max(2.0, limit / self.each / DEALT))
        kept = self._kept("size", {"rows": max(len(first) + 1, round(times * len(first)))})
        self.left = self.pool[: kept["rows"]]
        self.first_size = len(self.left)
        with self.progress.stage("winnowing rows", math.ceil(minutes)) as tick:
            while len(self.left) > len(self.take(self.left)) and self._deal(limit, len(first)):
                tick(min(math.ceil(minutes), round(self.seconds / 60)), self.each)
        return self._ended(first, last)

    def score(self, row: int) -> float:
        """How much lower than its deals' mean the loss was, on average, where the row stood."""
        return -self.sums.get(row, 0.0) / max(1, self.counts.get(row, 0))

    def _deal(self, limit: float, size: int) -> bool:
        """Deal the rows that are left once, and drop the worst; False: there is no time for it."""
        dealt = self._dealt()
        name = f"deals/{self.deals:04d}"
        there = (self.folder.path / f"{name}.json").is_file()
        if not there and self.seconds + len(dealt) * self.each > limit:
            return False
        names = [f"sets/{self.deals:04d}-{k:02d}" for k in range(len(dealt))]
        makes = (partial(self._trained, rows) for rows in dealt)
        found = self.several(dict(zip(names, makes, strict=True)))
        losses = np.array([np.mean([source["mean"] for source in made["nll"]]) for made in found])
        if self.deals == 0:
            self.spread = float(losses.std(ddof=1))
        self.each = float(np.mean([made["seconds"] for made in found]))
        for rows, loss in zip(dealt, losses, strict=True):
            for row in rows:
                self.sums[row] = self.sums.get(row, 0.0) + float(loss - losses.mean())
                self.counts[row] = self.counts.get(row, 0) + 1
            if loss < self.best[0]:
                self.best = float(loss), list(rows)
        self.sets += len(dealt)
        self.deals += 1
        # by the same factor for the same time: log(rows) falls along the time that is left
        share = min(1.0, self.seconds / limit)
        target = round(self.first_size ** (1 - share) * size**share)
        target = min(len(self.left), max(size, target))
        kept = self._kept(name, {"rows": target})["rows"]
        place = {row: k for k, row in enumerate(self.left)}
        self.left = sorted(self.left, key=lambda row: (-self.score(row), place[row]))[:kept]
        return True

    def _dealt(self) -> list[list[int]]:
        """Sets that have every row that is left once, and some of them twice."""
        order = list(self.left)
        if self.deals:
            generator = np.random.default_rng((self.seed, self.deals, 83))
            order = [order[i] for i in generator.permutation(len(order))]
        dealt: list[list[int]] = []
        at = 0
        while at < len(order) or len(dealt) < 2:
            at %= len(order)  # a second set where one has every row that is left
            dealt.append(self.take([*order[at:], *order[:at]]))
            at += len(dealt[-1])
        return dealt

    def _ended(self, first: list[int], last: int) -> Winnowed:
        sets = {"left": self.take(sorted(self.left, key=self.score, reverse=True))}
        sets |= {"dealt": self.best[1], "first": first}
        digest = hashlib.sha256(repr((sets, last)).encode()).hexdigest()[:12]

        def make() -> dict[str, Any]:
            seeds = range(LAST_SEED, LAST_SEED + last)
            made = {name: self.trained(rows, seeds) for name, rows in sets.items() if rows}
            judged = {name: against(nll, made["first"]) for name, nll in made.items()}
            return {"judged": {name: asdict(found) for name, found in judged.items()}}

        found = self.once(f"last-{digest}", make)["judged"]
        judged = {name: Judged(**made) for name, made in found.items()}
        best = min(judged, key=lambda name: judged[name].difference)
        if judged[best].difference >= 0:
            best = "first"
        for name, words in (("left", "what is left"), ("dealt", "the best set dealt")):
            if name in judged:
                self.progress.say(
                    f"{words}: NLL {judged[name].first:.3f}, {judged[name].difference:+.3f} to the "
                    f"first draw"
                )
        scores = {row: self.score(row) for row in self.counts}
        return Winnowed(
            sets[best],
            best,
            None if best == "first" else judged[best],
            self.sets,
            (self.first_size, len(self.left)),
            self.spread,
            scores,
            self.seconds,
            self.flops,
        )

    def _trained(self, rows: Sequence[int], deal: int | None = None) -> dict[str, Any]:
        """The judging rows' mean NLL after one training, by source; one seed a deal."""
        seed = self.seed + (self.deals if deal is None else deal)
        return {
            "rows": list(rows),
            "nll": [{"mean": source.nll(rows, seed).mean} for source in self.sources],
        }

    def _kept(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        """A number that hangs on the clock, as it was decided the first time."""
        return self.folder.once(name, lambda: found)
