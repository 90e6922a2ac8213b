"""How far does elimination get where a set's loss is the mean of its rows' effects?

    python experiments/winnow_additive.py [--size 112] [--spread 0.024] [--luck 0.006]
        [--repeats 20]

Rows have independent normal effects, so that random sets of `size` rows differ by a standard
deviation of `spread`; one set's trainings differ by `luck`. Both are ARC-Easy's on SmolLM2-135M
(docs/results.md). For several numbers of trainings: how far below a random set the set is that
`nacd select --method winnow` would find, and the best of as many random sets.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nacd.selection.winnowing import LAST, Winnow
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import RowNll

TRAININGS = (16, 24, 40, 60, 100, 200)
ROWS = 16
"""Rows that there are, as a multiple of a set's."""


class Additive:
    """A source whose loss is the mean effect of the rows that it is trained on."""

    flops = 0.0

    def __init__(self, rows: int, effect: float, luck: float, seed: int):
        self.generator = np.random.default_rng(seed)
        self.effects = self.generator.normal(scale=effect, size=rows)
        self.luck = luck

    def nll(self, rows: Sequence[int], seed: int) -> RowNll:
        """The set's loss, and the luck of one training."""
        loss = self.effects[list(rows)].mean() + self.generator.normal(scale=self.luck)
        return RowNll(np.array([loss]), np.ones(1, dtype=np.int64))


def gains(trainings: int, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """How far below a random set what winnowing finds is, and the best of as many draws."""
    size = options.size
    source = Additive(ROWS * size, options.spread * size**0.5, options.luck, seed)
    ticks = itertools.count(0.0, 30.0)
    with tempfile.TemporaryDirectory() as folder:
        search = Winnow(
            [source],
            range(ROWS * size),
            lambda order: list(order[:size]),
            seed=seed,
            folder=RunFolder(Path(folder)),
            progress=Progress(quiet=True),
            clock=lambda: next(ticks),
        )
        found = search.run((trainings + 3 * LAST) / 2)
    generator = np.random.default_rng((seed, 1))
    draws = [generator.permutation(ROWS * size)[:size] for _ in range(trainings)]
    best = min(draws, key=lambda rows: source.nll(rows.tolist(), 0).mean)
    return float(source.effects[found.rows].mean()), float(source.effects[best].mean())


def main() -> None:
    """Print the table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--size", type=int, default=112)
    flags.add_argument("--spread", type=float, default=0.024)
    flags.add_argument("--luck", type=float, default=0.006)
    flags.add_argument("--repeats", type=int, default=20)
    options = flags.parse_args()
    print(f"{'trainings':<12}{'winnow':>10}{'best of':>10}")
    for trainings in TRAININGS:
        both = [gains(trainings, options, seed) for seed in range(options.repeats)]
        winnow, best = np.mean(both, axis=0)
        print(f"{trainings:<12}{winnow:>+10.3f}{best:>+10.3f}")


if __name__ == "__main__":
    main()
