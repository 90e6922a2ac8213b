"""The cells of a comparison: one training of a target model on one row's set, and what is measured.

A cell that is there is read, unless its rows are others now; one that fails is kept as failed, and
tried again the next time. What is asked for after a cell was made (accuracy, other data) is
measured on the same training again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nacd.comparison.failures import failure, forget_failure, keep_failure
from nacd.comparison.rowsets import RowSet, Training, of_training
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.errors import UserError
from nacd.model.prepare import Prepared
from nacd.store.processes import spread
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import choice_accuracy, response_nll
from nacd.training.student import train_student, visited

Keep = Callable[[Sequence[dict[str, Any]]], None]
"""Takes the cells of one row of the table."""


def folder_name(model: str) -> str:
    """A model's name as that of a folder: its last part, and a hash that tells paths apart."""
    digest = hashlib.sha256(model.encode()).hexdigest()[:6]
    last = Path(model).name
    return last if last == model else f"{last}-{digest}"


def cell_folder(target: str, budget: str, method: str, seed: int) -> str:
    """Where one training's result stands in a comparison's folder."""
    return f"cells/{folder_name(target)}/{budget}/{method}/{seed}"


@dataclass(frozen=True)
class Grid:
    """The cells of one target model and budget."""

    config: CompareConfig
    folder: RunFolder
    prepared: Prepared
    target: str
    budget: str
    recipe: Recipe
    elsewhere: Sequence[Encoded] = ()
    """Rows of other data that every trained model is measured on too."""

    @cached_property
    def digest(self) -> str:
        """Tells the rows of other data apart from others under the same name."""
        return hashlib.sha256(repr(list(self.elsewhere)).encode()).hexdigest()[:16]

    def run(self, sets: Sequence[RowSet], progress: Progress, keep: Keep) -> None:
        """Every cell, made or read; `keep` is given those of one row after the other."""
        made: dict[str, dict[str, Any]] = {}
        name = f"{Path(self.target).name} {self.budget}"
        work = [(rowset, seed) for rowset in sets for seed in range(rowset.trainings)]
        with progress.stage(name, len(work)) as tick:
            cells = spread(
                work,
                lambda one: self._cell(*one, made),
                lambda done, cell: tick(done, cell.get("report_nll", float("nan"))),
            )
            for rowset in sets:
                row = [next(cells) for _ in range(rowset.trainings)]
                keep([cell for cell in row if "taken" not in cell])

    def _cell(self, rowset: RowSet, seed: int, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
        place = cell_folder(self.target, self.budget, rowset.method, seed)
        key = {
            "target": self.target,
            "budget": self.budget,
            "method": rowset.method,
            "seed": seed,
        }
        folder = self.folder.path / place
        if rowset.failed is not None and not (folder / "result.json").is_file():
            return keep_failure(folder, key, rowset.failed)
        if self.folder.taken(f"{place}/result"):  # whoever ends last has the whole table
            return {**key, "taken": True}
        answers = rowset.method in self.config.accuracy
        try:
            # a result whose rows cannot be had any more is shown as it is
            training = None if rowset.failed else rowset.training(self.prepared, seed)

            def make() -> dict[str, Any]:
                assert training is not None  # a failed row is only ever read
                return self._measure(training, seed, made, answers)

            of = "" if training is None else training.digest
            cell = self.folder.once(f"{place}/result", make, of=of)
            missing = self._missing(cell, answers)
            if missing:  # asked for after the cell was made
                theta, _, _ = self._train(rowset.training(self.prepared, seed), seed)
                cell = cell | {name: measure(theta) for name, measure in missing.items()}
                self.folder.keep(f"{place}/result", cell)
        except Exception as error:  # kept, shown, and tried again next time
            return keep_failure(folder, key, failure(error))
        forget_failure(folder)
        made.setdefault(str(cell["content"]), cell)
        about = {
            "draw": seed % rowset.draws,
            "choosing_seconds": rowset.choosing_seconds,
            "choosing_flops": rowset.choosing_flops,
        }
        return key | cell | about

    def _train(self, training: Training, seed: int) -> tuple[Any, int, Recipe]:
        recipe = of_training(self.recipe, training)
        if training.data is None:
            return self.prepared.model.zero_theta(), 0, recipe
        rows = len(training.data.rows)
        if training.steps is None:
            recipe.check_rows(rows)
        steps = training.steps or recipe.total_steps(rows)
        theta = train_student(
            self.prepared.model,
            recipe,
            training.data,
            seed,
            vectors=training.vectors,
            steps=steps,
        )
        return theta, steps, recipe

    def _measure(
        self, training: Training, seed: int, made: dict[str, dict[str, Any]], answers: bool
    ) -> dict[str, Any]:
        """Train and measure, or take over the result of a training that is the same."""
        content = self._content(training, seed)
        about = {
            "tokens_changed": training.tokens_changed,
            "boundaries_kept": training.boundaries_kept,
        }
        if content in made:
            return made[content] | about
        began = time.perf_counter()
        theta, steps, recipe = self._train(training, seed)
        trained = time.perf_counter() - began
        found = response_nll(self.prepared.model, theta, self.prepared.report.rows)
        if not math.isfinite(found.mean):
            mend = "give --dtype float32."
            if steps:
                mend = (
                    f"training diverges at --learning-rate {recipe.learning_rate:g}; give a "
                    "smaller one."
                )
            raise UserError(f"the loss on test rows is {found.mean} after {steps} steps: {mend}")
        rows, tokens = 0, 0
        if training.data is not None:
            rows, tokens = visited(training.data, recipe, steps, seed)
        return about | {
            "report_nll": found.mean,
            "rows": rows,
            "tokens": tokens,
            "steps": steps,
            "learning_rate": recipe.learning_rate,
            "training_seconds": trained,
            "content": content,
            "template": self.prepared.template.name,
            "row_nll": [round(float(x), 5) for x in found.nll],
            "row_tokens": [int(n) for n in found.tokens],
            "accuracy": self._accuracy(theta) if answers else None,
            "elsewhere": self._harm(theta) if self.elsewhere else None,
        }

    def _missing(
        self, cell: dict[str, Any], answers: bool
    ) -> dict[str, Callable[[Any], dict[str, Any]]]:
        """What a cell is to be measured by, and is not yet."""
        missing: dict[str, Callable[[Any], dict[str, Any]]] = {}
        if answers and not cell.get("accuracy"):
            missing["accuracy"] = self._accuracy
        known = cell.get("elsewhere") or {}
        same = known.get("data") == self.config.elsewhere
        if self.elsewhere and not (same and known.get("digest", self.digest) == self.digest):
            missing["elsewhere"] = self._harm
        return missing

    def _harm(self, theta: Any) -> dict[str, Any]:
        """Response NLL on other data than what was trained for."""
        found = response_nll(self.prepared.model, theta, list(self.elsewhere))
        return {
            "data": self.config.elsewhere,
            "digest": self.digest,
            "nll": found.mean,
            "rows": len(self.elsewhere),
        }

    def _accuracy(self, theta: Any) -> dict[str, Any]:
        """Accuracy on the test questions, with what it depends on."""
        found = choice_accuracy(
            self.prepared.model,
            theta,
            self.prepared.report.examples,
            template=self.prepared.template,
            task="test rows",
        )
        return {
            "acc": found.acc,
            "acc_norm": found.acc_norm,
            "n": found.n,
            "shots": found.shots,
            "lm_eval": found.lm_eval,
            "correct": [*found.correct],
        }

    def _content(self, training: Training, seed: int) -> str:
        """A hash of all that a training depends on but the model."""
        recipe = of_training(self.recipe, training)
        text = json.dumps([training.digest, seed, training.steps, repr(recipe)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
