"""What searches over sets of rows share: trainings, two sets compared, files to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from nacd.statistics.intervals import mean_error, t_interval
from nacd.store.cache import Cache
from nacd.store.processes import spread
from nacd.training.evaluation import RowNll


class Trained(Protocol):
    """What trains on rows and judges: a model with a recipe. Rows are numbers from 0."""

    def nll(self, rows: Sequence[int], seed: int) -> RowNll:
        """NLL of the judging rows after a training on `rows`."""
        ...

    @property
    def flops(self) -> float:
        """Floating-point operations spent so far."""
        ...


@dataclass(frozen=True)
class Judged:
    """One set against another, on the judging rows, pair by pair."""

    difference: float
    """Mean over trainings of the difference in NLL per token; negative: the first is better."""
    interval: float | None
    """Half the width of the 95 % t-interval over trainings; None: too few."""
    row_error: float
    """Standard error over the judging rows."""
    first: float
    """NLL of the first set."""
    second: float
    """NLL of the second set."""
    trainings: int
    """Of either set."""


def against(first: Sequence[Sequence[RowNll]], second: Sequence[Sequence[RowNll]]) -> Judged:
    """One set's trainings against another's, paired by their seeds.

    Args:
        first: by source and training, the judging rows' NLL after the first set; of several
            sources, the mean counts.
        second: the same after the second set.
    """
    differences, errors = [], []
    for one, other in zip(first, second, strict=True):
        differences.append([a.mean - b.mean for a, b in zip(one, other, strict=True)])
        rows = np.mean([a.nll - b.nll for a, b in zip(one, other, strict=True)], axis=0)
        errors.append(mean_error(rows, one[0].tokens))
    by_training = np.mean(differences, axis=0)
    return Judged(
        float(by_training.mean()),
        t_interval(by_training.tolist()),
        float(np.linalg.norm(errors) / len(errors)),
        float(np.mean([[found.mean for found in trainings] for trainings in first])),
        float(np.mean([[found.mean for found in trainings] for trainings in second])),
        trainings=len(by_training),
    )


S = TypeVar("S", bound=Trained)
P = TypeVar("P")
R = TypeVar("R")


class Searching(Generic[S]):
    """A search whose every training is a file of its folder, with what it took.

    Args:
        sources: trained on the same rows.
        seed: of all trainings.
        folder: keeps them.
        clock: seconds; None: of this process.
    """

    def __init__(
        self,
        sources: Sequence[S],
        seed: int,
        folder: Cache,
        clock: Callable[[], float] | None = None,
    ):
        self.sources, self.seed, self.folder = sources, seed, folder
        self.clock = clock or (lambda: time.perf_counter())
        self.seconds, self.flops = 0.0, 0.0
        self._elsewhere = 0.0
        """Operations of other processes."""

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`make`, kept as a file with its seconds and operations, which count once."""
        return self._counted(self._made(name, make))

    def several(self, makes: dict[str, Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
        """`once` of several that do not depend on each other, by name, spread over processes."""
        found = spread([*makes.items()], lambda one: self._made(*one))
        return [self._counted(one) for one in found]

    def _made(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def timed() -> dict[str, Any]:
            began, before = self.clock(), self._operations()
            found = make()
            spent = self._operations() - before
            return found | {"seconds": self.clock() - began, "flops": spent}

        return self.folder.once(name, timed)

    def _counted(self, found: dict[str, Any]) -> dict[str, Any]:
        self.seconds += found["seconds"]
        self.flops += found["flops"]
        return found

    def trained(self, rows: Sequence[int], seeds: Sequence[int]) -> list[list[RowNll]]:
        """The judging rows after trainings on `rows`, by source and seed."""
        pairs = [(source, seed) for source in self.sources for seed in seeds]
        found = self.over(pairs, lambda pair: pair[0].nll(rows, self.seed + pair[1]))
        return [found[i : i + len(seeds)] for i in range(0, len(pairs), len(seeds))]

    def over(self, pieces: Sequence[P], do: Callable[[P], R]) -> list[R]:
        """Pieces of work with the sources, spread over processes; all of it is counted here."""

        def counted(piece: P) -> tuple[R, float]:
            before = self._operations()
            return do(piece), self._operations() - before

        before = self._operations()
        made = [*spread(pieces, counted)]
        self._elsewhere += sum(spent for _, spent in made) - (self._operations() - before)
        return [result for result, _ in made]

    def _operations(self) -> float:
        return sum(source.flops for source in self.sources) + self._elsewhere
