"""Learning rate and epochs found together, on validation rows, by whole trainings.

Successive halving (arXiv 1502.07943) gives every setting a little and the better half twice as
much. The little is usually a training stopped early. Here that would be wrong: a learning rate that
decays over the whole training has not decayed where it is stopped, so an epoch of an eight-epoch
training is not a one-epoch training, and a shorter training on a share of the rows has its best
rate and its best number of epochs elsewhere. So every training in the search is a whole one, on all
the rows, by its own schedule, and what is doubled is the number of trainings:

    first rung    one training each: the recipe given, then what lies beside the best so far on the
                  grid (rate up or down, epochs up or down, one up and the other down), the cheapest
                  first, until everything beside the best has been tried. Where the best lies at the
                  grid's border, the grid grows.
    later rungs   the better half, without what is clearly worse, trained again: 2 trainings each,
                  then 4.

The k-th training of every setting has the same rows, initial values and validation rows, so that
settings are compared pair by pair. The error of such a difference is that over validation rows and,
once something was trained twice, that over trainings. Of all settings within one such error of the
best, that with the fewest epochs is taken (the one-standard-error rule, Breiman et al. 1984).
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.rows import Rows
from nacd.errors import UserError
from nacd.model.lora import LoraModel
from nacd.statistics.intervals import mean_error
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import RowNll, response_nll
from nacd.training.student import TUNING_SEED, train_student

EPOCHS = (1.0, 2.0, 4.0, 8.0)
"""Epochs of the grid."""
AROUND = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)
"""Learning rates of the grid, in multiples of the recipe's."""
BEYOND = 4
"""Values that an axis may grow by at either end."""
TUNING_DRAWS = 50_000
"""Random draws to tune on have seeds 50000, 50001, ..., which nothing else uses."""
TRAININGS = 4
"""Trainings of a setting in the last rung."""
CLEARLY = 2.0
"""A setting this many standard errors worse than the best is not trained again."""
FEW_ROWS = 30
"""Validation rows below which the choice is said to stand on few."""
SEARCHED = 16
"""Trainings of a search, roughly: a dozen settings once, the better ones up to four times."""
FORWARD = 0.4
"""Time of a forward pass, in ordinary training steps: roughly."""


@dataclass(frozen=True, order=True)
class Setting:
    """What is tuned."""

    epochs: float
    learning_rate: float


Score = Callable[[Setting, int], RowNll | None]
"""(setting, number of the training) -> validation NLL by row; None: no time is left for it."""


@dataclass(frozen=True)
class Tried:
    """One setting, and what its trainings reached."""

    learning_rate: float
    epochs: float
    nll: float | None
    """Validation NLL, the mean over its trainings; None: a training diverged."""
    trainings: int


@dataclass(frozen=True)
class Found:
    """What a search found."""

    setting: Setting
    tried: tuple[Tried, ...]
    """In the order of their first training."""
    complete: bool
    """Whether there was time for all that the search asked for."""
    notes: tuple[str, ...]
    """What to know of the choice, in sentences."""


@dataclass(frozen=True)
class TunedRecipe:
    """A recipe with its learning rate and epochs found, and how."""

    recipe: Recipe
    tried: tuple[Tried, ...]
    complete: bool
    validation_rows: int
    seconds: float
    """Time of all trainings of the search."""
    notes: tuple[str, ...]

    def describe(self) -> str:
        """The choice in a sentence."""
        chosen = (self.recipe.learning_rate, self.recipe.epochs)
        nll = {(t.learning_rate, t.epochs): t.nll for t in self.tried}[chosen]
        reached = "" if nll is None else f", validation NLL {nll:.3f}"
        several = f", the choice of {len(self.tried)} tried" if len(self.tried) > 1 else ""
        return f"{_written(Setting(chosen[1], chosen[0]))}{reached}{several}"

    def table(self) -> list[dict[str, Any]]:
        """What was tried, best first, as rows for a card or a page."""
        order = sorted(self.tried, key=lambda t: math.inf if t.nll is None else t.nll)
        return [
            {
                "learning rate": f"{tried.learning_rate:g}",
                "epochs": f"{tried.epochs:g}",
                "validation NLL": "diverged" if tried.nll is None else f"{tried.nll:.3f}",
                "trainings": tried.trainings,
            }
            for tried in order
        ]


def tune_recipe(
    model: LoraModel,
    sets: Sequence[Sequence[Encoded]],
    validation: Sequence[Encoded],
    recipe: Recipe,
    folder: RunFolder,
    *,
    rates: Sequence[float] = (),
    epochs: Sequence[float] = EPOCHS,
    trainings: int = TRAININGS,
    minutes: float | None = None,
    name: str = "tuning",
    progress: Progress | None = None,
) -> TunedRecipe:
    """Find the learning rate and the epochs of a recipe together; see the module's docstring.

    Every training is one file in the folder, so that a stopped search goes on. A finished one is
    read; one that time has ended goes on when it is given more. What was kept of other rows is
    made anew.

    Args:
        model: the model; its LoRA is overwritten.
        sets: rows to train on: one set, or several (random draws, say) that the first, second, ...
            training of every setting take in turn.
        validation: rows whose response NLL decides.
        recipe: all else of the training; its rate and epochs are tried first. Always shuffled.
        folder: keeps `name`.json, and `name`/, a file a training.
        rates: learning rates of the grid; empty: a quarter to four times the recipe's. One alone is
            fixed.
        epochs: epochs of the grid; one alone is fixed.
        trainings: of a setting, at most.
        minutes: no training is begun that would not end within them, but the first; those of
            earlier calls count. None: no limit.
        name: of the record.
        progress: display.

    Raises:
        UserError: every training diverges, or the rows are too few for one optimiser step that
            moves anything.
    """
    progress = progress or Progress(quiet=True)
    recipe = replace(recipe, shuffle=True, steps=0)
    fewest = min(len(rows) for rows in sets)
    usable = [e for e in epochs if _moves(replace(recipe, epochs=e), fewest)]
    if not usable:
        replace(recipe, epochs=max(epochs)).check_rows(fewest)
    pad = model.tokenizer.pad_token_id
    digests = [Rows.of(rows, pad).digest() for rows in sets]
    of = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    spent = {"seconds": 0.0, "work": 0.0}

    def score(setting: Setting, number: int) -> RowNll | None:
        rows = sets[number % len(sets)]
        tried = replace(recipe, learning_rate=setting.learning_rate, epochs=setting.epochs)
        file = f"{name}/{setting.learning_rate:g}-{setting.epochs:g}-{number}"
        work = setting.epochs * _tokens(rows) + FORWARD * _tokens(validation)
        if minutes is not None and spent["work"] and not (folder.path / f"{file}.json").is_file():
            expected = spent["seconds"] * (1 + work / spent["work"])
            if expected > 60 * minutes:
                return None

        def make() -> dict[str, Any]:
            began = time.perf_counter()
            data = Rows.of(rows, pad)
            title = f"{setting.learning_rate:g}, {setting.epochs:g} ep."
            with progress.stage(title, tried.total_steps(len(rows))) as tick:
                theta = train_student(
                    model,
                    tried,
                    data,
                    TUNING_SEED + number,
                    tick=lambda done, _, loss: tick(done, loss),
                )
                found = response_nll(model, theta, validation)
            finite = bool(np.isfinite(found.nll).all())
            return {
                "nll": [float(x) for x in found.nll] if finite else None,
                "tokens": [int(n) for n in found.tokens],
                "seconds": time.perf_counter() - began,
            }

        kept = folder.once(file, make, of=digests[number % len(sets)])
        spent["seconds"] += kept["seconds"]
        spent["work"] += work
        tokens = np.asarray(kept["tokens"])
        nll = np.full(len(tokens), math.nan) if kept["nll"] is None else np.asarray(kept["nll"])
        return RowNll(nll, tokens)

    def make() -> dict[str, Any]:
        found = search(
            score,
            rates=rates or [factor * recipe.learning_rate for factor in AROUND],
            epochs=usable,
            start=Setting(recipe.epochs, recipe.learning_rate),
            trainings=trainings,
            allowed=lambda setting: _moves(replace(recipe, epochs=setting.epochs), fewest),
        )
        few = (
            [f"Only {len(validation)} validation rows decided: others might choose otherwise."]
            if len(validation) < FEW_ROWS
            else []
        )
        return {
            "learning_rate": found.setting.learning_rate,
            "epochs": found.setting.epochs,
            "tried": [asdict(tried) for tried in found.tried],
            "complete": found.complete,
            "minutes": minutes,
            "seconds": spent["seconds"],
            "notes": [*found.notes, *few],
        }

    def stopped(kept: dict[str, Any]) -> bool:
        """Whether time ended a search that is given more now."""
        return not kept["complete"] and (minutes is None or minutes > kept["minutes"])

    kept = folder.once(name, make, of=of, stale=stopped)
    chosen = replace(recipe, learning_rate=kept["learning_rate"], epochs=kept["epochs"])
    return TunedRecipe(
        chosen,
        tuple(Tried(**tried) for tried in kept["tried"]),
        kept["complete"],
        len(validation),
        kept["seconds"],
        tuple(kept["notes"]),
    )


def search(
    score: Score,
    *,
    rates: Sequence[float],
    epochs: Sequence[float],
    start: Setting,
    trainings: int = TRAININGS,
    allowed: Callable[[Setting], bool] = lambda _: True,
) -> Found:
    """The search of `tune_recipe` over any score; it draws nothing at random.

    Args:
        score: validation NLL by row of the k-th training of a setting.
        rates: learning rates of the grid; one alone is fixed.
        epochs: epochs of the grid; one alone is fixed.
        start: tried first, at the grid's nearest point.
        trainings: of a setting, at most.
        allowed: whether a setting can be trained with at all.

    Raises:
        UserError: every training diverges.
    """
    state = _Search(score, _Axis(rates), _Axis(epochs, floor=min(1.0, *epochs)), allowed)
    state.climb(state.nearest(start))
    best = state.halve(trainings)
    if best is None:
        rates = sorted({setting.learning_rate for setting in state.scores})
        raise UserError(
            f"--learning-rate: training diverges at each of {', '.join(f'{r:g}' for r in rates)}; "
            f"give a smaller one than {rates[0]:g}."
        )
    chosen = state.cheapest(best)
    tried = tuple(
        Tried(setting.learning_rate, setting.epochs, state.mean(setting), len(found))
        for setting, found in state.scores.items()
    )
    return Found(chosen, tried, state.complete, tuple(state.notes(best, chosen)))


class _Axis:
    """The values of a grid along one axis, which may grow at its ends."""

    def __init__(self, values: Sequence[float], floor: float = 0.0):
        self.given = sorted(set(values))
        self.values = list(self.given)
        self.floor = floor

    def beside(self, value: float) -> tuple[float | None, float | None]:
        """The values below and above one of the grid; None: there is none, and never will be."""
        if len(self.given) < 2:
            return None, None
        at = self.values.index(value)
        if at == 0:
            lower = float(f"{self.values[0] ** 2 / self.values[1]:.3g}")
            known = sum(v < self.given[0] for v in self.values)
            if lower >= self.floor and known < BEYOND:
                self.values.insert(0, lower)
                at = 1
        if at == len(self.values) - 1:
            known = sum(v > self.given[-1] for v in self.values)
            if known < BEYOND:
                self.values.append(float(f"{self.values[-1] ** 2 / self.values[-2]:.3g}"))
        above = self.values[at + 1] if at + 1 < len(self.values) else None
        return (self.values[at - 1] if at else None), above

    def nearest(self, value: float) -> float:
        return min(self.given, key=lambda known: abs(math.log(known / value)))

    def beyond(self, value: float) -> bool:
        return not self.given[0] <= value <= self.given[-1]


class _Search:
    """Scores so far, and where to look next."""

    def __init__(
        self, score: Score, rates: _Axis, epochs: _Axis, allowed: Callable[[Setting], bool]
    ):
        self.score, self.rates, self.epochs, self.allowed = score, rates, epochs, allowed
        self.scores: dict[Setting, list[RowNll]] = {}
        self.complete = True

    def nearest(self, start: Setting) -> Setting:
        return Setting(self.epochs.nearest(start.epochs), self.rates.nearest(start.learning_rate))

    def look(self, setting: Setting, number: int) -> bool:
        """Train once more; False: there is no time for it."""
        found = self.score(setting, number)
        if found is None:
            self.complete = False
            return False
        self.scores.setdefault(setting, []).append(found)
        return True

    def mean(self, setting: Setting) -> float | None:
        """Mean validation NLL; None: a training diverged."""
        values = [found.mean for found in self.scores[setting]]
        return statistics.fmean(values) if all(map(math.isfinite, values)) else None

    def _rank(self, setting: Setting) -> tuple[float, float]:
        """Lower is better; of settings that diverge, the one with the lower rate."""
        mean = self.mean(setting)
        return (math.inf, setting.learning_rate) if mean is None else (mean, 0.0)

    def climb(self, start: Setting) -> None:
        """The first rung: from the start to what is best among all beside it."""
        if not self.look(start, 0):
            return
        best, moved = start, True
        while moved:
            moved = False
            for setting in self._beside(best):
                if setting in self.scores:
                    continue
                if not self.look(setting, 0):
                    return
                if self._rank(setting) < self._rank(best):
                    best, moved = setting, True
                    break

    def _beside(self, setting: Setting) -> list[Setting]:
        slower, faster = self.rates.beside(setting.learning_rate)
        shorter, longer = self.epochs.beside(setting.epochs)
        same = setting.epochs
        pairs = [(shorter, faster), (shorter, setting.learning_rate), (same, slower)]
        pairs += [(same, faster), (longer, slower), (longer, setting.learning_rate)]
        found = [Setting(e, r) for e, r in pairs if e is not None and r is not None]
        return [setting for setting in found if self.allowed(setting)]

    def halve(self, trainings: int) -> Setting | None:
        """The later rungs: the best of the last; None where everything diverges."""
        left, count = self._finite(self.scores), 1
        while left:
            left = [s for s in left if not self.worse(s, left[0], CLEARLY)]
            if count > 1 or len(left) > 2:  # two that are alike are trained again
                left = left[: math.ceil(len(left) / 2)]
            again = range(count, min(2 * count, trainings))
            if len(left) == 1 or not again:
                break
            if not all(self.look(setting, number) for number in again for setting in left):
                # not all were trained as often in this rung: the one before decides
                left = sorted(self._finite(left), key=lambda s: self._over(s, count))
                break
            left = self._finite(left)
            count *= 2
        return next(iter(left or self._finite(self.scores)), None)

    def _finite(self, settings: Iterable[Setting]) -> list[Setting]:
        """Those without a training that diverged, best first."""
        return sorted((s for s in settings if self.mean(s) is not None), key=self._rank)

    def _over(self, setting: Setting, count: int) -> float:
        values = [found.mean for found in self.scores[setting][:count]]
        return statistics.fmean(values)

    def difference(self, one: Setting, other: Setting) -> tuple[float, float]:
        """The mean paired difference of two settings, and its standard error."""
        pairs = list(zip(self.scores[one], self.scores[other], strict=False))
        tokens = pairs[0][0].tokens
        rows = np.mean([a.nll - b.nll for a, b in pairs], axis=0)
        error = mean_error(rows, tokens)
        return float(rows.sum() / tokens.sum()), math.hypot(
            error, math.sqrt(self._spread(other) / len(pairs))
        )

    def _spread(self, best: Setting) -> float:
        """Variance of a paired difference from one training to another, over all settings."""
        squares, freedom = 0.0, 0
        for setting in self.scores:
            pairs = list(zip(self.scores[setting], self.scores[best], strict=False))
            values = [a.mean - b.mean for a, b in pairs]
            if setting != best and len(values) > 1 and all(map(math.isfinite, values)):
                squares += statistics.variance(values) * (len(values) - 1)
                freedom += len(values) - 1
        return squares / freedom if freedom else 0.0

    def worse(self, setting: Setting, best: Setting, errors: float) -> bool:
        """Whether a setting is worse than the best by more than so many standard errors."""
        if setting == best:
            return False
        difference, error = self.difference(setting, best)
        return difference > errors * error

    def cheapest(self, best: Setting) -> Setting:
        """Of the settings within one standard error of the best, that with the fewest epochs."""
        within = [s for s in self._finite(self.scores) if not self.worse(s, best, 1.0)]
        return min(within, key=lambda s: (s.epochs, s != best, self.difference(s, best)[0]))

    def notes(self, best: Setting, chosen: Setting) -> list[str]:
        """What to know of the choice."""
        found = []
        for axis, of, word in (
            (self.epochs, lambda s: s.epochs, "epochs"),
            (self.rates, lambda s: s.learning_rate, "learning rates"),
        ):
            further = sorted({of(s) for s in self.scores if axis.beyond(of(s))})
            if further:
                found.append(
                    f"The best lay at the border of the {word} given "
                    f"({axis.given[0]:g} to {axis.given[-1]:g}), so "
                    f"{', '.join(f'{value:g}' for value in further)} was tried, too."
                )
        if chosen != best:
            difference, error = self.difference(chosen, best)
            found.append(
                f"{_written(best)} is lower by {difference:.3f} \N{PLUS-MINUS SIGN} {error:.3f} "
                "(one standard error) and takes more epochs; the shorter training was chosen."
            )
        diverged = [s for s in self.scores if self.mean(s) is None]
        if diverged:
            found.append(f"Training diverged at {'; '.join(map(_written, diverged))}.")
        if not self.complete:
            found.append("Time was up before all was tried that the search asks for.")
        return found


def _written(setting: Setting) -> str:
    plural = "" if setting.epochs == 1 else "s"
    return f"learning rate {setting.learning_rate:g}, {setting.epochs:g} epoch{plural}"


def _moves(recipe: Recipe, rows: int) -> bool:
    try:
        recipe.check_rows(rows)
    except UserError:
        return False
    return True


def _tokens(rows: Sequence[Encoded]) -> int:
    return sum(len(row) for row in rows)
