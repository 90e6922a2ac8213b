"""The cells of a table: one training of a target model on one row's set, and what is measured.

A cell that is there is read, unless its rows are others now; one that fails is kept as failed, and
tried again the next time. A training that diverges is a result: it would again. What is asked for
after a cell was made (accuracy, other data) is measured on the same training again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from nacd.comparison.failures import failure, forget_failure, keep_failure
from nacd.comparison.rowset import RowSet, Trained, Training, of_training, train
from nacd.config import Budget
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.errors import UserError
from nacd.model.prepare import Prepared
from nacd.store.processes import spread
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import choice_accuracy, response_nll

Keep = Callable[[Sequence[dict[str, Any]]], None]
"""Takes the cells of one row of the table."""


def folder_name(model: str) -> str:
    """A model's name as that of a folder: its last part, and a hash that tells paths apart."""
    digest = hashlib.sha256(model.encode()).hexdigest()[:6]
    last = Path(model).name
    return last if last == model else f"{last}-{digest}"


def cell_folder(target: str, budget: str, method: str, seed: int) -> str:
    """Where one training stands in a comparison's folder: its `result.json`, or `failed.json`."""
    return f"cells/{folder_name(target)}/{budget}/{method}/{seed}"


@dataclass(frozen=True)
class Grid:
    """The cells of one target model and budget."""

    config: CompareConfig
    folder: RunFolder
    prepared: Prepared
    target: str
    budget: Budget
    recipe: Recipe
    elsewhere: Sequence[Encoded] = ()
    """Rows of other data that every trained model is measured on too."""
    alone: bool = False
    """Whether these are the only cells, those of `nacd distill`: in `ladder/`, a file each."""

    def place(self, method: str, seed: int) -> str:
        """Folder of one training's failure."""
        if self.alone:
            return f"ladder/{method}-{seed}"
        return cell_folder(self.target, str(self.budget), method, seed)

    def name(self, method: str, seed: int) -> str:
        """Name of one training's result."""
        return self.place(method, seed) + ("" if self.alone else "/result")

    @cached_property
    def digest(self) -> str:
        """Tells the rows of other data apart from others under the same name."""
        return hashlib.sha256(repr(list(self.elsewhere)).encode()).hexdigest()[:16]

    def run(self, sets: Sequence[RowSet], progress: Progress, keep: Keep) -> None:
        """Every cell, made or read; `keep` is given those of one row after the other."""
        made: dict[str, dict[str, Any]] = {}
        name = "table" if self.alone else f"{Path(self.target).name} {self.budget}"
        sets = [self._ready(rowset) for rowset in sets]
        work = [(rowset, seed) for rowset in sets for seed in range(rowset.trainings)]
        with progress.stage(name, len(work)) as tick:

            def told(done: int, cell: dict[str, Any]) -> None:
                nll = cell.get("report_nll")
                tick(done, math.nan if nll is None else nll)

            cells = spread(work, lambda one: self._cell(*one, made), told)
            others = 0
            for rowset in sets:
                row = [next(cells) for _ in range(rowset.trainings)]
                others += sum("taken" in cell for cell in row)
                keep([cell for cell in row if "taken" not in cell])
        if others:
            progress.say(
                f"{name}: {others} trainings are being made by other jobs; the last to end has all"
            )

    def _ready(self, rowset: RowSet) -> RowSet:
        """A row with all that its trainings need, or marked as failed: the others go on."""
        try:
            rowset.before(self.prepared, self.recipe)
        except Exception as error:
            return replace(rowset, failed=failure(error))
        return rowset

    def _cell(self, rowset: RowSet, seed: int, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
        method = rowset.method
        key = {"target": self.target, "budget": str(self.budget), "method": method, "seed": seed}
        folder, name = self.folder.path / self.place(method, seed), self.name(method, seed)
        if rowset.failed is not None and not (self.folder.path / f"{name}.json").is_file():
            return keep_failure(folder, key, rowset.failed)
        if self.folder.taken(name):  # whoever ends last has the whole table
            return {**key, "taken": True}
        answers = method in self.config.accuracy
        try:
            # a result whose rows cannot be had any more is shown as it is
            training = None if rowset.failed else rowset.training(self.prepared, seed)

            def make() -> dict[str, Any]:
                assert training is not None  # a failed row is only ever read
                found = self._measure(training, seed, made, answers)
                return found | {"method": method, "seed": seed}

            of, older = ("", "") if training is None else self._keys(training)
            cell = self.folder.once(name, make, of=of, older=older)
            missing = {} if _diverged(cell) else self._missing(cell, answers)
            if missing:  # asked for after the cell was made
                theta = self._train(rowset.training(self.prepared, seed), seed).theta
                cell = cell | {name: measure(theta) for name, measure in missing.items()}
                self.folder.keep(name, cell)
        except Exception as error:  # kept, shown, and tried again next time
            if self.alone and isinstance(error, (UserError, OSError)):
                raise  # a short run ends with what is to be mended, and goes on from there
            return keep_failure(folder, key, failure(error))
        forget_failure(folder)
        if content := cell.get("content"):  # an older version's table has none
            made.setdefault(str(content), cell)
        about = {
            "draw": seed % rowset.draws,
            "choosing_seconds": rowset.choosing_seconds,
            "choosing_flops": rowset.choosing_flops,
        }
        return self._absent(training, cell) | cell | key | about

    def _absent(self, training: Training | None, cell: dict[str, Any]) -> dict[str, Any]:
        """What a cell of an older version lacks."""
        found: dict[str, Any] = {
            "row_tokens": [row.response_tokens for row in self.prepared.report.rows]
        }
        if _diverged(cell):
            found = {"failed": "training diverged"}
        if training is not None:
            found["tokens_changed"] = training.tokens_changed
            found["boundaries_kept"] = training.boundaries_kept
        return found

    def _train(self, training: Training, seed: int) -> Trained:
        return train(self.prepared, self.recipe, training, seed)

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
        done = self._train(training, seed)
        found = response_nll(self.prepared.model, done.theta, self.prepared.report.rows)
        cell = about | {
            "report_nll": found.mean,
            "rows": done.rows,
            "tokens": done.tokens,
            "steps": done.steps,
            "learning_rate": done.recipe.learning_rate,
            "training_seconds": done.seconds,
            "content": content,
            "template": self.prepared.template.name,
            "row_nll": [round(float(x), 5) for x in found.nll],
            "row_tokens": [int(n) for n in found.tokens],
        }
        if not math.isfinite(found.mean):
            return cell | {"failed": _why(found.mean, done)}
        return cell | {
            "accuracy": self._accuracy(done.theta) if answers else None,
            "elsewhere": self._harm(done.theta) if self.elsewhere else None,
        }

    def _missing(
        self, cell: dict[str, Any], answers: bool
    ) -> dict[str, Callable[[Tensor], dict[str, Any]]]:
        """What a cell is to be measured by, and is not yet."""
        missing: dict[str, Callable[[Tensor], dict[str, Any]]] = {}
        if answers and not cell.get("accuracy"):
            missing["accuracy"] = self._accuracy
        known = cell.get("elsewhere") or {}
        same = known.get("data") == self.config.elsewhere
        if self.elsewhere and not (same and known.get("digest", self.digest) == self.digest):
            missing["elsewhere"] = self._harm
        return missing

    def _harm(self, theta: Tensor) -> dict[str, Any]:
        """Response NLL on other data than what was trained for."""
        found = response_nll(self.prepared.model, theta, list(self.elsewhere))
        return {
            "data": self.config.elsewhere,
            "digest": self.digest,
            "nll": found.mean,
            "rows": len(self.elsewhere),
        }

    def _accuracy(self, theta: Tensor) -> dict[str, Any]:
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

    def _keys(self, training: Training) -> tuple[str, str]:
        """What a kept result must be of, and how a comparison's older version wrote that."""
        rate = of_training(self.recipe, training).learning_rate
        return f"{training.digest} at {rate:.9g}", training.digest

    def _content(self, training: Training, seed: int) -> str:
        """A hash of all that a training depends on but the model."""
        recipe = of_training(self.recipe, training)
        text = json.dumps([training.digest, seed, training.steps, repr(recipe)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _diverged(cell: dict[str, Any]) -> bool:
    return cell["report_nll"] is None


def _why(nll: float, done: Trained) -> str:
    mend = "give --dtype float32."
    if done.steps:
        mend = (
            f"training diverges at --learning-rate {done.recipe.learning_rate:g}; give a smaller "
            "one."
        )
    return f"the loss on test rows is {nll} after {done.steps} steps: {mend}"
