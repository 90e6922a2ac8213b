"""Do the meta-gradients of two inner loops agree? Asked at the starting rows, before learning.

Every outer step sees one or a few inner loops, each from its own start, in its own order. What they
share is signal; the rest is theirs alone, and averages out. With mean cosine c between two of them,
the mean of S has cosine

    sqrt(S c / (1 + (S - 1) c))

to the mean of all. Measured on the gradient in what is learned (the simplex's logits, say).
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from nacd.config import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.distillation.learn import Distiller
from nacd.distillation.pool import window_of
from nacd.store.processes import spread

GOAL = 0.7
"""Cosine to the true gradient that the mean of an outer step should have."""
NOTHING = 0.1
"""Mean cosine below which the inner loops are said to agree in nothing."""
MANY = 16
"""Inner loops an outer step beyond which something else is to be changed."""


def to_the_mean(cosine: float, loops: int) -> float:
    """Cosine to the true gradient of the mean of so many inner loops, by their mean cosine."""
    c = max(0.0, cosine)
    return math.sqrt(loops * c / (1 + (loops - 1) * c))


def loops_for(cosine: float, goal: float = GOAL) -> int | None:
    """How many inner loops an outer step has to average; None: no number of them is enough."""
    if not cosine > 0:
        return None
    needed = goal**2 * (1 - cosine) / (cosine * (1 - goal**2))
    return max(1, math.ceil(needed - 1e-9))


@dataclass(frozen=True)
class Agreement:
    """What inner loops at the starting rows have in common."""

    cosines: tuple[float, ...]
    """Of every pair of meta-gradients; NaN where one was 0 or no number."""
    segments: int
    """Inner loops that an outer step averages, as configured."""
    advice: str
    """What to change; empty: nothing."""

    @property
    def cosine(self) -> float:
        """The mean over the pairs."""
        return statistics.fmean(self.cosines)

    @property
    def loops(self) -> int | None:
        """Inner loops that an outer step has to average for cosine `GOAL`."""
        return loops_for(self.cosine)

    def to_dict(self) -> dict[str, Any]:
        """For a file, or --json."""
        return {
            "cosine": self.cosine,
            "cosines": list(self.cosines),
            "loops": self.loops,
            "segments": self.segments,
            "said": self.describe(),
        }

    def describe(self) -> str:
        """What was found and what to do, in a few lines at 80 columns."""
        count = round((1 + math.sqrt(1 + 8 * len(self.cosines))) / 2)
        if not math.isfinite(self.cosine):
            said = f"Agreement: of {count} meta-gradients at the starting rows some are not usable."
        else:
            now = to_the_mean(self.cosine, self.segments)
            said = (
                f"Agreement: the meta-gradients of {count} inner loops, each in an order of its "
                f"own, have cosine {self.cosine:.2f} ({min(self.cosines):.2f} to "
                f"{max(self.cosines):.2f}). An outer step averages {self.segments} (--segments), "
                f"which gives cosine {now:.2f} to the true gradient; for {GOAL} "
                f"{_needed(self.loops)}."
            )
        return "\n".join(textwrap.wrap(f"{said} {self.advice}", 80, break_on_hyphens=False))


def _needed(loops: int | None) -> str:
    return "no number of them is enough" if loops is None else f"it takes {loops}"


def measure(distiller: Distiller, rows: int) -> Agreement:
    """Compare the meta-gradients of the first inner loops of learning; nothing is learned.

    Args:
        distiller: at its start. Students that it trains for late windows are kept for learning.
        rows: the number of starting rows.
    """
    outer, config = distiller.outer, distiller.config
    vectors = outer.vectors().detach()

    def one(step: int) -> tuple[Tensor, float]:
        segment = distiller.segment(0, step) if distiller.pool else distiller.segment(step, 0)
        found = outer.differentiate(segment, vectors)
        return outer.projection.pull(found.vectors, 0.0).flatten().cpu(), found.value

    with distiller.progress.stage("agreement", config.agreement) as tick:
        told = spread(range(config.agreement), one, lambda done, made: tick(done, made[1]))
        gradients = [gradient for gradient, _ in told]
    cosines = tuple(_cosine(a, b) for a, b in combinations(gradients, 2))
    return Agreement(cosines, config.segments, advice(cosines, config, distiller.recipe, rows))


def _cosine(a: Tensor, b: Tensor) -> float:
    length = float(a.norm()) * float(b.norm())
    return float(torch.dot(a, b)) / length if 0 < length < math.inf else math.nan


def advice(cosines: Sequence[float], config: OuterLoopConfig, recipe: Recipe, rows: int) -> str:
    """What to change: window, segments, rate or epochs, or to choose rows instead."""
    cosine = statistics.fmean(cosines)
    lower = f"--learning-rate {recipe.learning_rate / 2:.3g}"
    if not math.isfinite(cosine):
        return f"Training diverges, or nothing moves: try {lower}, or another --window."
    loops = loops_for(cosine)
    enough = loops is not None and loops <= MANY and cosine >= NOTHING
    if enough and loops is not None:
        return "" if config.segments >= loops else f"Give --segments {loops}."
    ahead, window = window_of(config, recipe, rows)
    epoch = -(-rows // recipe.batch_size)
    mends = []
    if config.objective == "trajectory":
        mends.append(f"shorter stretches (--window {max(1, window // 2)}, --expert-ahead to match)")
    elif not ahead and recipe.total_steps(rows) > epoch:
        mends.append(f"late windows (--pool 3 --window {epoch})")
    elif not ahead:
        rate = recipe.learning_rate / 4
        mends.append(f"more epochs at a lower rate (--epochs 4 --learning-rate {rate:.3g}; --tune)")
    else:
        if window > epoch:
            mends.append(f"a shorter window (--window {epoch})")
        mends.append(f"a lower rate ({lower}), with more epochs to match (--tune finds both)")
        if window > 4:
            mends.append(f"a shorter window (--window {min(window, epoch) // 2})")
    few = "hardly anything" if cosine < NOTHING else "little"
    return (
        f"That is {few}: what one outer step learns, the next takes back. Try "
        f"{', or '.join(dict.fromkeys(mends))}; or choose real rows instead (nacd select)."
    )
