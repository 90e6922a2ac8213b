"""Learning rate and epochs found together, on validation rows, by whole trainings.

The search is `nacd.training.halving`; every training in it is a whole one, kept as a file.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.rows import Rows
from nacd.errors import UserError
from nacd.model.lora import LoraModel
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import RowNll, response_nll
from nacd.training.halving import TRAININGS, Setting, Tried, search, written
from nacd.training.student import TUNING_SEED, train_student

EPOCHS = (1.0, 2.0, 4.0, 8.0)
"""Epochs of the grid."""
AROUND = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)
"""Learning rates of the grid, in multiples of the recipe's."""
TUNING_DRAWS = 50_000
"""Random draws to tune on have seeds 50000, 50001, ..., which nothing else uses."""
FEW_ROWS = 30
"""Validation rows below which the choice is said to stand on few."""
SEARCHED = 16
"""Trainings of a search, roughly: a dozen settings once, the better ones up to four times."""
FORWARD = 0.4
"""Time of a forward pass, in ordinary training steps: roughly."""


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
        return f"{written(Setting(chosen[1], chosen[0]))}{reached}{several}"

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


def _moves(recipe: Recipe, rows: int) -> bool:
    try:
        recipe.check_rows(rows)
    except UserError:
        return False
    return True


def _tokens(rows: Sequence[Encoded]) -> int:
    return sum(len(row) for row in rows)
