"""What a check found, as plain values: its table, what weakens it, what more would take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nacd.checking.plan import LABELLED, TRIES, Costs, Goal, still_asked
from nacd.checking.trainings import Trainings
from nacd.checking.verdict import (
    Measured,
    Measurements,
    Verdict,
    difference,
    half_of,
    name_of,
)
from nacd.comparison import cautions
from nacd.config.recipe import Recipe
from nacd.data.overlap import overlapping, row_text
from nacd.statistics.verdict import Difference, word
from nacd.training.tuning import FEW_ROWS, TunedRecipe

MINUTES = (2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1440)
"""Times that are advised."""


@dataclass(frozen=True)
class Checked:
    """What `check` found."""

    folder: Path
    """The run folder."""
    dataset: Path | None
    """The rows that are recommended; None: none of them."""
    report: Path
    """The page that shows all of it."""
    kind: str
    """`all`, `more`, `fewer`, `choose`, `random`, `none` or `too few`; see
    `nacd.checking.verdict`."""
    verdict: str
    """What to do, in one sentence, with the figure that says so."""
    detail: str
    """What is known of the other question; may be empty."""
    rows: int
    """Rows that are recommended."""
    recipe: Recipe
    """Of all trainings at the budget, tuned."""
    table: list[dict[str, Any]]
    """A row a set that was trained on."""
    minutes: float
    """Time spent, all calls together."""
    advised: float | None
    """Minutes that may answer what is open; None: nothing is, or time would not help."""
    held_out: str = ""
    """Where the test rows are, and how to measure on them."""
    labels: Path | None = None
    """Soft labels of the rows at the budget; None: nothing is known to be gained by them."""


@dataclass(frozen=True)
class Outcome:
    """A check whose time is used."""

    trainings: Trainings
    tuned: TunedRecipe | None
    """None: the recipe was taken as given."""
    costs: Costs
    """By what the trainings took."""
    wanted: Sequence[Goal]
    spent: float
    """Seconds of all trainings and choices."""

    def measured(self) -> Measurements:
        """The figures on test rows; this is where they are looked at."""
        own, sizes = self.trainings, self.trainings.state.sizes
        methods = own.config.methods
        return Measurements(
            sizes.budget,
            sizes.total,
            np.asarray(own.tokens),
            own.measured("zero-shot", 0),
            {n: m for n in sizes.all if (m := own.measured("random", n))},
            {name: m for name in methods if (m := own.measured(name, sizes.budget))},
            labelled=own.measured(LABELLED, sizes.budget),
            settled=own.state.passes(sizes.total)[1] is None,
            alike=own.config.alike,
        )

    # --- what more would take ------------------------------------------------------------------

    def advice(self, verdict: Verdict) -> tuple[str, float | None]:
        """What would answer an open question, in a sentence, and the minutes if it is time."""
        lacking, own = verdict.lacking, self.trainings
        if lacking is None:
            return "", None
        if lacking.what == "test rows":
            there = len(own.tokens)
            needed = 10 * math.ceil(0.11 * lacking.factor * there)
            if needed > 100 * there:
                return "The difference, if there is one, is too small to be found.", None
            return f"About {needed:,} test rows would tell: name a file with --heldout.", None
        asked = still_asked(own.state, self.wanted, self.costs, lacking.question)
        again = (lacking.factor - 1) * sum(result["seconds"] for result in own.done())
        minutes = 1.1 * (self.spent + asked + again) / 60
        fit = [m for m in MINUTES if m >= max(minutes, 1.3 * own.config.minutes)]
        if not fit:
            return "To tell, more trainings would be needed than a day has time for.", None
        return f"To tell, give --minutes {fit[0]} (estimated).", float(fit[0])

    def left_out(self) -> list[dict[str, Any]]:
        """Sets without a training, and the seconds that they would take."""
        state = self.trainings.state
        found: dict[str, float] = {}
        for goal in self.wanted:
            name = state.sizes.name(goal.kind, goal.rows)
            if name not in found and not self.trainings.used(goal.kind, goal.rows):
                jobs = state.missing(goal)
                found[name] = sum(self.costs.seconds(job, state) for job in jobs)
        return [{"name": name, "seconds": seconds} for name, seconds in found.items() if seconds]

    # --- figures -------------------------------------------------------------------------------

    def table(self, measured: Measurements, verdict: Verdict) -> list[dict[str, Any]]:
        """A row a set: no training, random sets by size, the choices, soft labels."""
        base = measured.random.get(measured.budget)
        sets = [("zero-shot", measured.untrained)] if measured.untrained else []
        sets += [("random", own) for _, own in sorted(measured.random.items())]
        sets += list(measured.choices.items())
        sets += [(LABELLED, measured.labelled)] if measured.labelled else []
        rows = []
        for kind, own in sets:
            against = verdict.labels if kind == LABELLED else verdict.against.get(kind)
            if against is None and base is not None and own is not base:
                against = difference(own, base, measured.tokens)
            rows.append(self._row(kind, own, base, against))
        return rows

    def _row(
        self, kind: str, own: Measured, base: Measured | None, against: Difference | None
    ) -> dict[str, Any]:
        used = self.trainings.used(kind, own.rows)
        settled = kind != "random" or self.trainings.state.passes(own.rows)[1] is None
        told = word(against) if against else None
        if told == "worse" and not settled:
            told = "too few passes"
        known = against is not None and against.over_trainings is not None
        return {
            "set": kind,
            "name": self.trainings.state.sizes.name(name_of(kind), own.rows),
            "rows": own.rows,
            "passes": self.trainings.passes(kind, own.rows),
            "settled": settled,
            "tokens": round(np.mean([result["tokens_trained"] for result in used])),
            "nll": own.mean,
            "values": list(own.values),
            "half": half_of(own, base),
            "trainings": len(own.values) if own.trained else 0,
            "seconds": float(np.mean([result["seconds"] for result in used])),
            "choosing_seconds": self._choosing(kind),
            "minus_random": against
            and {
                "mean": against.mean,
                "low": against.low if known else None,
                "high": against.high if known else None,
                "over_trainings": against.over_trainings,
                "over_rows": list(against.over_rows or ()),
                "word": told,
            },
        }

    def _choosing(self, kind: str) -> float | None:
        """Seconds that a method took to choose; None where nothing is chosen."""
        results, sizes = self.trainings.state.results, self.trainings.state.sizes
        if kind == "best-of":
            draws = self.trainings.used("random", sizes.budget)
            return sum(draw["seconds"] for draw in draws[:TRIES])
        return next((r["seconds"] for job, r in results.items() if job.choosing
                     and job.kind == kind), None)  # fmt: skip

    def tuning(self) -> dict[str, Any] | None:
        """How the recipe was found; None: it was not."""
        return self.tuned and {
            "said": self.tuned.describe(),
            "table": self.tuned.table(),
            "notes": list(self.tuned.notes),
            "validation_rows": self.tuned.validation_rows,
        }

    def costs_by_set(self) -> list[dict[str, Any]]:
        """What was done, with its time: tuning, trainings by set, choices."""
        sizes = self.trainings.state.sizes
        found: dict[str, list[float]] = {}
        if self.tuned is not None:
            times = [tried.trainings for tried in self.tuned.tried]
            found["tuning learning rate and epochs"] = [sum(times), self.tuned.seconds]
        for job, result in self.trainings.state.results.items():
            entry = found.setdefault(sizes.name(job.kind, job.rows, job.choosing), [0, 0.0])
            entry[0] += 1
            entry[1] += result["seconds"]
        return [
            {"name": name, "count": int(count), "seconds": seconds}
            for name, (count, seconds) in found.items()
        ]

    def readings(self) -> list[int]:
        """How many trainings stood behind each reading of the test rows so far."""
        file = self.trainings.folder.path / "results.json"
        before = json.loads(file.read_text(encoding="utf-8"))["readings"] if file.is_file() else []
        now = len(self.trainings.done())
        return before if before[-1:] == [now] else [*before, now]

    def warnings(self, measured: Measurements) -> list[tuple[str, str]]:
        """What weakens the figures: a few words, and a sentence or two."""
        return [*self._of_rows(measured), *self._of_trainings(measured)]

    def _of_rows(self, measured: Measurements) -> Iterator[tuple[str, str]]:
        prepared = self.trainings.prepared
        yield from cautions.of_test_rows(len(measured.tokens))
        if len(prepared.development) < FEW_ROWS:
            chosen = [
                "the passes of other sizes",
                *(["the recipe"] if self.tuned else []),
                *(["the best draw"] if "best-of" in self.trainings.config.methods else []),
            ]
            yield (
                f"Only {len(prepared.development)} validation rows.",
                f"They decide on {' and '.join(chosen)}.",
            )
        train = map(row_text, prepared.train.examples)
        test = [row_text(example) for example in prepared.report.examples]
        kept = self.trainings.folder.once(
            "overlap", lambda: {"rows": sum(1 for _ in overlapping(train, test))}
        )
        if kept["rows"]:
            yield (
                f"Training rows that share 13 words in a row with a test row: {kept['rows']:,}.",
                "Figures on these test rows may be too good, those of large sets most of all.",
            )
        if len(self.readings()) > 1:
            yield (
                f"The test rows have been read {len(self.readings())} times.",
                "Each time with more trainings; an interval is that of one reading.",
            )

    def _of_trainings(self, measured: Measurements) -> Iterator[tuple[str, str]]:
        state = self.trainings.state
        if self.tuned is None:
            yield (
                "The recipe is not tuned.",
                "With another learning rate, or other epochs, every figure may be another.",
            )
        for note in self.tuned.notes if self.tuned else ():
            yield "The recipe.", note
        once = [rows for rows, own in measured.random.items() if len(own.values) == 1]
        if once:
            names = ", ".join(state.sizes.name("random", rows) for rows in sorted(once))
            yield (
                f"Trained on once: {names}.",
                "Their interval takes one training to spread as those of the budget do.",
            )
        unsettled = [rows for rows in sorted(measured.random) if state.passes(rows)[1]]
        if unsettled:
            names = ", ".join(state.sizes.name("random", rows) for rows in unsettled)
            yield (
                f"Perhaps too few passes: {names}.",
                "There was no time to see whether twice as many train better.",
            )
        if diverged := sum(result["diverged"] for result in self.trainings.done()):
            yield f"Trainings that diverged: {diverged}.", "They have no figure."
        yield from cautions.of_model(self.trainings.config.model.model)
