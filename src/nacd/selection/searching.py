"""What searches over sets of rows share: trainings, two sets compared, files to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from nacd.statistics.intervals import mean_error, t_interval
from nacd.store.run import RunFolder
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
        folder: RunFolder,
        clock: Callable[[], float] | None = None,
    ):
        self.sources, self.seed, self.folder = sources, seed, folder
        self.clock = clock or (lambda: time.perf_counter())
        self.seconds, self.flops = 0.0, 0.0

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`make`, kept as a file with its seconds and operations, which count once."""

        def timed() -> dict[str, Any]:
            began, before = self.clock(), sum(s.flops for s in self.sources)
            found = make()
            spent = sum(source.flops for source in self.sources) - before
            return found | {"seconds": self.clock() - began, "flops": spent}

        found = self.folder.once(name, timed)
        self.seconds += found["seconds"]
        self.flops += found["flops"]
        return found

    def trained(self, rows: Sequence[int], seeds: Sequence[int]) -> list[list[RowNll]]:
        """The judging rows after trainings on `rows`, by source and seed."""
        return [[s.nll(rows, self.seed + seed) for seed in seeds] for s in self.sources]
