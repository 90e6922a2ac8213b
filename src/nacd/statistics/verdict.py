"""Better, worse, or cannot be told: one rule for every difference, and the decision it leads to.

All figures are test NLL in nats per response token, and lower is better. A difference has an
interval over trainings and, where the rows' own figures are kept, one over the test rows. A claim
is made only where both carry it and three trainings or more stand behind it; what is printed is the
wider end of the two on either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nacd.statistics.intervals import FEW

RULE = (
    "A difference has two intervals, over trainings and over test rows; what stands here is the "
    "wider end of the two on either side. Better or worse is said only where both exclude 0, and "
    "of three trainings or more."
)
"""The rule, for whoever reads a table."""
Word = Literal["better", "worse", "cannot be told", "too few"]


@dataclass(frozen=True)
class Difference:
    """One set's test NLL minus another's."""

    mean: float
    over_trainings: float | None
    """Half the interval over trainings; None: too few of them for one."""
    over_rows: tuple[float, float] | None = None
    """The interval over test rows; None: not known."""
    figures: int = FEW
    """Trainings (or distillations) that stand behind it."""

    @property
    def low(self) -> float:
        """The lower end of the wider interval."""
        half = math.inf if self.over_trainings is None else self.over_trainings
        return min(self.mean - half, self.mean if self.over_rows is None else self.over_rows[0])

    @property
    def high(self) -> float:
        """The upper end of the wider interval."""
        half = math.inf if self.over_trainings is None else self.over_trainings
        return max(self.mean + half, self.mean if self.over_rows is None else self.over_rows[1])


def read_difference(kept: Mapping[str, Any] | None) -> Difference | None:
    """A difference as `nacd.comparison.table.difference` keeps it; None: there is none."""
    if not kept:
        return None
    rows = kept.get("over_questions")
    figures = kept["figures"] if "figures" in kept else kept["pairs"]
    return Difference(kept["mean"], kept["over_trainings"], rows and (rows[0], rows[1]), figures)


def word(d: Difference) -> Word:
    """A difference in a word: the one rule."""
    if d.over_trainings is None or d.figures < FEW:
        return "too few"
    if d.high < 0:
        return "better"
    return "worse" if d.low > 0 else "cannot be told"


def turned(d: Difference) -> Difference:
    """The other set's minus the one's."""
    rows = d.over_rows and (-d.over_rows[1], -d.over_rows[0])
    return Difference(-d.mean, d.over_trainings, rows, d.figures)


def span(d: Difference) -> str:
    """A difference and its interval: `0.050 (0.021 to 0.083)`, with true minuses."""
    interval = "no interval" if d.over_trainings is None else f"{d.low:.3f} to {d.high:.3f}"
    return f"{d.mean:.3f} ({interval})".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Rival:
    """What a set of rows is held against."""

    name: str
    """In the plural: `random rows`, `the rows by RDS+`."""
    difference: Difference
    """The set's figure minus this one's."""

    def clause(self) -> str:
        """How the set stands to it: the figure, its interval, and whether it may be chance."""
        d = self.difference
        figure, side = (span(d), "higher") if d.mean > 0 else (span(turned(d)), "lower")
        chance = " (it may be chance)" if word(d) == "cannot be told" else ""
        return f"{figure} nats per token {side} than with {self.name}{chance}"


def beats(rivals: Sequence[Rival]) -> bool:
    """Whether a set is better than every one of what it is held against."""
    return bool(rivals) and all(word(rival.difference) == "better" for rival in rivals)


def decide(own: str, rivals: Sequence[Rival], again: str) -> str:
    """What to do with a set of rows, against what, and the figures: one sentence.

    Args:
        own: the rows, in the plural: `the distilled rows`, `the rows by RDS+`.
        rivals: rows that may be taken instead, the simplest first; at least one.
        again: what brings more trainings: `give more --trainings`.
    """
    words = [word(rival.difference) for rival in rivals]
    held = _joined([rival.clause() for rival in rivals])
    ahead = [r for r, said in zip(rivals, words, strict=True) if said == "worse"]
    if ahead:
        best = max(ahead, key=lambda rival: rival.difference.mean).name
        return f"Take {best}, not {own}: with these, test NLL is {held}."
    if "too few" in words:
        few = min(rival.difference.figures for rival in rivals)
        count = "one training" if few == 1 else f"{few} trainings"
        return f"Too few to tell ({count} a row; {again}): with {own}, test NLL is {held}."
    if beats(rivals):
        return f"Take {own}: test NLL is {held}."
    simplest = next(r.name for r, said in zip(rivals, words, strict=True) if said != "better")
    return f"Take {simplest}: with {own}, test NLL is {held}."


def _joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; the unit is said once."""
    unit = " nats per token"
    parts = [parts[0], *(part.replace(unit, "") for part in parts[1:])]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
