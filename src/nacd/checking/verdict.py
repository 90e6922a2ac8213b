"""What a check says, by rule: from measured trainings to one of seven verdicts, in a sentence.

All figures are test NLL in nats per response token, and lower is better. A difference has two
intervals: over trainings (Welch's, `nacd.statistics.intervals.difference_interval`: a choice is one
set of rows, random rows are many, so their trainings are no pairs) and over test rows (paired row
by row, drawn anew by the bootstrap). A claim is made only where both carry it; what is printed is
the wider end of the two on either side. With m choices held against random rows, each has its
interval at 1 - 0.05 / m.

Two sets are *alike* where the interval of their difference ends below the margin: a share
(`--alike`) of what the best set gains over the model without training.

    none       the best set measured is worse than no training
    fewer      a random set is alike to all rows (the smallest one, asked from large to small)
    all        all rows are better than the budget's, and no smaller set is alike to them
    more       a larger set is better than the budget's, and all rows have not been measured
    choose     no answer on size; a choice is better than random rows
    random     no answer on size; no choice is better than random rows by the margin
    too few    nothing of that, or fewer than three trainings on random rows, or than 30 test rows

A second sentence says what is known of the other question, a third what soft labels gain at the
budget, unless the budget's rows train like all of them anyway.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from nacd.checking.plan import Question
from nacd.config.methods import METHODS
from nacd.statistics.intervals import (
    FEW,
    FEW_TEST,
    difference_interval,
    question_bootstrap,
    t_interval,
)
from nacd.statistics.verdict import Difference, span, turned

LEVEL = 0.95

Kind = Literal["none", "fewer", "all", "more", "choose", "random", "too few"]


@dataclass(frozen=True)
class Measured:
    """One set's trainings on the test rows."""

    rows: int
    values: tuple[float, ...]
    """Test NLL of every training."""
    by_row: np.ndarray
    """(n,) summed NLL of every test row, the mean over trainings."""
    trained: bool = True
    """Off for the model without training, whose figure does not vary."""

    @property
    def mean(self) -> float:
        """Test NLL, the mean over trainings."""
        return statistics.fmean(self.values)


def difference(
    one: Measured, other: Measured, tokens: np.ndarray, level: float = LEVEL
) -> Difference:
    """One set's figure minus another's, with its intervals.

    Args:
        one: the set that is judged.
        other: the one it is held against.
        tokens: (n,) response tokens of every test row.
        level: of the intervals.
    """
    if one.trained and other.trained:
        half = difference_interval(one.values, other.values, level)
    else:
        half = t_interval(one.values if one.trained else other.values, level)
    over_rows = question_bootstrap(one.by_row - other.by_row, tokens, level=level)
    return Difference(one.mean - other.mean, half, over_rows)


@dataclass(frozen=True)
class Measurements:
    """All that a verdict is given."""

    budget: int
    total: int
    tokens: np.ndarray
    """(n,) response tokens of every test row."""
    untrained: Measured | None
    """The model without training."""
    random: Mapping[int, Measured]
    """Random sets by their rows; those of `total` are all rows."""
    choices: Mapping[str, Measured]
    """Choices of the budget's size by method."""
    labelled: Measured | None = None
    """Random rows of the budget with the soft labels of the model trained on all rows."""
    settled: bool = True
    """Whether all rows were trained on for as many passes as are best for them."""
    alike: float = 0.05


@dataclass(frozen=True)
class Lacking:
    """What more an answer would take."""

    what: Literal["trainings", "test rows"]
    factor: float
    """How many times as many of them, roughly; infinite: no number would do."""
    question: Question = "choices"
    """Which question they would answer."""


@dataclass(frozen=True)
class Verdict:
    """What a check says."""

    kind: Kind
    sentence: str
    """What to do, and the figure that says so."""
    detail: str
    """What is known of the other question; may be empty."""
    rows: int
    """Rows that are recommended; 0: none."""
    method: str
    """Who chose them at the budget: `random`, or the choice that is better."""
    margin: float | None
    """Differences below it count as none; None: training was not seen to gain anything."""
    against: Mapping[str, Difference] = field(default_factory=dict)
    """Every choice minus random rows of the budget."""
    lacking: Lacking | None = None
    """Where a question is open: what more it would take."""
    labels: Difference | None = None
    """Random rows of the budget with soft labels minus without."""

    @property
    def taught(self) -> bool:
        """Whether students are known to gain by soft labels."""
        return self.labels is not None and self.labels.high < 0


def judge(measured: Measurements) -> Verdict:
    """The verdict by the rules of the module's docstring; a pure function."""
    return _Judge(measured).verdict()


class _Judge:
    def __init__(self, m: Measurements):
        self.m = m
        self.margin = 0.0
        self.base = m.random.get(m.budget, Measured(m.budget, (), np.zeros(len(m.tokens))))
        told = {name: c for name, c in m.choices.items() if len(c.values) >= FEW}
        level = 1 - (1 - LEVEL) / max(1, len(told))
        self.against = {
            name: difference(choice, self.base, m.tokens, level)
            for name, choice in told.items()
            if self.base.values
        }

    def verdict(self) -> Verdict:
        m, base = self.m, self.base
        if len(m.tokens) < FEW_TEST:
            return self._open(
                f"Too few test rows to tell: {len(m.tokens)}, and at least {FEW_TEST} are needed.",
                Lacking("test rows", FEW_TEST / max(1, len(m.tokens))),
            )
        if len(base.values) < FEW or m.untrained is None:
            return self._open(
                f"Too few trainings to tell: {len(base.values)} on random rows, and at least "
                f"{FEW} are needed.",
                Lacking("trainings", 1.0),
            )
        best = min([*m.random.values(), *m.choices.values()], key=lambda s: s.mean)
        gain = difference(m.untrained, best, m.tokens)
        if len(best.values) < FEW:
            gain = replace(gain, over_trainings=difference_interval(best.values, base.values))
        if gain.high < 0:
            return Verdict(
                "none",
                f"Do not train on these rows: the best set measured, {best.rows:,} rows, is worse "
                f"than no training, by {span(turned(gain))} nats per token.",
                "",
                0,
                "random",
                None,
                self.against,
            )
        if gain.low <= 0:
            return self._open(
                "Too few trainings or test rows to tell whether these rows teach anything: the "
                f"best set, {best.rows:,} rows, gains {span(gain)} nats per token.",
                _lacking(gain, abs(gain.mean)),
            )
        self.margin = m.alike * gain.mean
        return self._helps()

    def _open(self, sentence: str, lacking: Lacking) -> Verdict:
        return Verdict(
            "too few", sentence, "", self.m.budget, "random", None, self.against, lacking
        )

    def _helps(self) -> Verdict:
        m, base = self.m, self.base
        better = self._better()
        bounded = bool(self.against) and all(d.low > -self.margin for d in self.against.values())
        choice_open = None if better or bounded else self._choices_lack()
        largest = m.random[max(m.random)]
        more = None if largest is base else difference(base, largest, m.tokens)
        size_open = self._size_lacks(more)
        kind: Kind
        rows, method, lacking = m.budget, better or "random", choice_open
        detail = self._size(more, largest)
        if (found := self._alike()) is not None:
            rows, lost = found
            kind, sentence = "fewer", self._fewer(rows, lost)
            detail = self._clause(better, bounded)
            if rows < m.budget:
                method, detail = "random", ""
            elif rows == m.budget:
                detail = f"Chosen {self._than_random(better)}" if better else ""
        elif more is not None and more.low > 0:
            ahead = f"{span(more)} nats per token lower than {m.budget:,} random ones"
            rows = largest.rows
            if rows == m.total:
                kind, sentence = "all", f"Keep them all: all {m.total:,} rows end {ahead}."
            else:
                kind, lacking = "more", size_open
                sentence = (
                    f"Keep more than {m.budget:,}: {rows:,} random rows end {ahead}. All "
                    f"{m.total:,} have not been measured."
                )
            detail = self._clause(better, bounded)
        elif better:
            kind, lacking = "choose", size_open
            sentence = f"Choose {self._than_random(better)}"
        elif bounded:
            kind, lacking = "random", size_open
            sentence = f"Random rows will do at this budget; save your time: {self._bound()}"
        else:
            kind, lacking = "too few", choice_open or size_open
            sentence = f"Too few {lacking.what} to tell: {self._open_choices()}"
        labels = None
        if kind != "fewer" or rows > m.budget:
            labels, taught = self._labels(largest)
            detail = f"{detail} {taught}".strip()
        return Verdict(
            kind, sentence, detail, rows, method, self.margin, self.against, lacking, labels
        )

    # --- on size -------------------------------------------------------------------------------

    def _alike(self) -> tuple[int, Difference] | None:
        """The smallest random set that is alike to all rows, and what it loses.

        Asked from large to small, up to the first that is not: so no level has to be shared out.
        """
        m = self.m
        full = m.random.get(m.total)
        found = None
        for rows in sorted(m.random, reverse=True) if full is not None and m.settled else []:
            if rows == m.total or len(m.random[rows].values) < FEW:
                continue
            lost = difference(m.random[rows], m.random[m.total], m.tokens)
            if lost.high >= self.margin:
                break
            found = rows, lost
        return found

    def _fewer(self, rows: int, lost: Difference) -> str:
        m = self.m
        these = "these " if rows <= m.budget else ""
        share = f"{100 * m.alike:g}\N{NO-BREAK SPACE}%"
        return (
            f"{rows:,} rows train like all {m.total:,}: keep {these}{rows:,}. They lose "
            f"{span(lost)} nats per token; less than {self.margin:.3f}, {share} of what training "
            "gains, counts as alike."
        )

    def _size(self, more: Difference | None, largest: Measured) -> str:
        """Why nothing is said on size."""
        m = self.m
        if more is None:
            return f"All {m.total:,} rows have not been measured."
        gain = f"gain {span(more)} nats per token over {m.budget:,}"
        if largest.rows < m.total:
            return f"{largest.rows:,} rows {gain}; all {m.total:,} have not been measured."
        if more.high < self.margin:
            return f"All {m.total:,} rows {gain}, but were trained on for too few passes to judge."
        return f"Whether all {m.total:,} rows train better cannot be told: they {gain}."

    def _size_lacks(self, more: Difference | None) -> Lacking:
        if more is None:
            return Lacking("trainings", 1.0, "size")
        return _lacking(more, max(more.mean, self.margin - more.mean), "size")

    # --- on soft labels ------------------------------------------------------------------------

    def _labels(self, largest: Measured) -> tuple[Difference | None, str]:
        """What soft labels gain, and how far towards all rows that is."""
        m, base, own = self.m, self.base, self.m.labelled
        if own is None or len(own.values) < FEW:
            return None, ""
        found = difference(own, base, m.tokens)
        lead = f"With soft labels of the model trained on all rows, {m.budget:,} random rows"
        if not found.high < 0:
            gain = span(turned(found))
            return found, f"{lead} are not known to end lower: {gain} nats per token."
        way = base.mean - largest.mean
        share = ""
        if largest.rows == m.total and way > 0:
            share = f", {100 * -found.mean / way:.0f}\N{NO-BREAK SPACE}% of the way to all rows"
        return found, f"{lead} end {span(turned(found))} nats per token lower{share}."

    # --- on choices ----------------------------------------------------------------------------

    def _better(self) -> str:
        """The choice that is better than random rows, the best of them; empty: none is."""
        found = [name for name, d in self.against.items() if d.high < 0]
        return min(found, key=lambda name: self.against[name].mean, default="")

    def _than_random(self, better: str) -> str:
        gain = span(turned(self.against[better]))
        return f"by {name_of(better)}: {gain} nats per token lower than random rows."

    def _bound(self) -> str:
        best = min(self.against, key=lambda name: self.against[name].mean)
        gain = span(turned(self.against[best]))
        names = " or ".join(map(name_of, self.against))
        return (
            f"neither gains {self.margin:.3f} nats per token over them ({names}; the most, "
            f"{name_of(best)}, {gain})."
            if len(self.against) > 1
            else f"{names} does not gain {self.margin:.3f} nats per token over them ({gain})."
        )

    def _clause(self, better: str, bounded: bool) -> str:
        """What is known of choices, behind an answer on size."""
        lead = f"If it must be {self.m.budget:,}, "
        if better:
            return f"{lead}choose {self._than_random(better)}"
        if bounded:
            return f"{lead}random rows will do: {self._bound()}"
        return f"{lead}nothing is known to beat random rows: {self._open_choices()}"

    def _open_choices(self) -> str:
        if not self.against:
            return "no choice has been measured."
        figures = [f"{name_of(name)} {span(turned(d))}" for name, d in self.against.items()]
        return f"{', '.join(figures)} nats per token lower than random rows."

    def _choices_lack(self) -> Lacking:
        """What it would take to tell every choice from random rows, or to bound it."""
        found = [_lacking(d, max(-d.mean, self.margin + d.mean)) for d in self.against.values()]
        return max(found, key=lambda lack: lack.factor, default=Lacking("trainings", 1.0))


def _lacking(d: Difference, target: float, question: Question = "choices") -> Lacking:
    """What makes both intervals shorter than `target`, by the law of the square root."""
    if d.over_trainings is None:
        return Lacking("trainings", 1.0, question)
    low, high = d.over_rows or (d.mean, d.mean)
    rows = max(d.mean - low, high - d.mean)
    what = "test rows" if rows > d.over_trainings else "trainings"
    longer = max(rows, d.over_trainings)
    factor = max(1.0, (longer / target) ** 2) if target > 0 else math.inf
    return Lacking(what, factor, question)


def name_of(method: str) -> str:
    """A method by the name that people know."""
    return method if method not in METHODS else METHODS[method].name or method


def half_of(own: Measured, base: Measured | None) -> float | None:
    """Half the interval of a set's figure over trainings; of one training, as the base spreads."""
    if not own.trained:
        return None
    if len(own.values) > 1 or base is None:
        return t_interval(own.values)
    half = t_interval(base.values)
    return None if half is None else half * math.sqrt(len(base.values))
