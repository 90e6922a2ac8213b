"""The trainings of a check: rows for a job, one training, its figures; each kept as one JSON file.

    trainings/<rate>/<set>-<rows>/<passes>-<number>.json
    trainings/<rate>/teacher-<passes>.safetensors    the first training on all rows: LoRA's values

Test figures are written there with each training, and looked at when the time is used: nothing is
chosen by them. What is chosen (the best of the draws, the passes of a size) is chosen by validation
rows, and the rows of the best draw are trained on afresh.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from nacd.checking.plan import LABELLED, Job, State, dear
from nacd.checking.verdict import Measured
from nacd.comparison.labelled import with_labels
from nacd.comparison.rowset import Trained, Training, of_training, train
from nacd.config import SelectionConfig, with_judge
from nacd.config.check import SWAPPING, CheckConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.rows import Rows
from nacd.distillation.learn import draw
from nacd.model.prepare import Prepared
from nacd.selection import Task, choose_once
from nacd.selection.random import random_order
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.tuning import TunedRecipe

DRAWS = 10_000
"""Random draws have seeds 10000, 10001, ... (and 100 more for every --seed), as in a comparison."""
AFRESH = 1000
"""The best draw's rows are trained on from seeds 1000, 1001, ...; all others from 0, 1, ..."""


@dataclass
class Trainings:
    """Trains on what a job names, or reads what an earlier call has left."""

    config: CheckConfig
    prepared: Prepared
    folder: RunFolder
    state: State
    progress: Progress
    recipe: Recipe = field(init=False)
    """For the budget."""

    @property
    def _place(self) -> str:
        return f"trainings/{self.recipe.learning_rate:g}"

    def take(self, tuned: TunedRecipe | None) -> None:
        """Take a recipe, or the one given, and what earlier calls have left that was made by it."""
        self.recipe = self.config.recipe if tuned is None else tuned.recipe
        self.state.epochs = self.recipe.epochs
        self.state.results.clear()
        for file in sorted((self.folder.path / self._place).glob("*/*.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            self.state.results[Job(**result["job"])] = result
        for method in self.config.methods:
            file = self.folder.path / f"{self._chosen(method)}.json"
            if file.is_file():
                self.state.results[Job(method, self.state.sizes.budget, 0.0, -1)] = json.loads(
                    file.read_text(encoding="utf-8")
                )

    def run(self, job: Job) -> None:
        """Do one job; its result is in the state then."""
        if job.choosing:
            self.state.results[job] = choose_once(
                self.folder, self._chosen(job.kind), self._task(job.kind), job.kind, "--methods"
            )
            return
        name = f"{self._place}/{job.kind}-{job.rows}/{job.passes:g}-{job.number}"
        self.state.results[job] = self.folder.once(name, lambda: self._measure(job))

    def rows(self, kind: str, rows: int, number: int = 0) -> list[int]:
        """Indices of the training rows of a set.

        Args:
            kind: `random`, `labelled`, or a method.
            rows: how many.
            number: of the random draw; draws of one number hold each other, whatever their size.
        """
        train, budget = self.prepared.train, self.state.sizes.budget
        if kind == "best-of":
            best = self.state.best_draw()
            assert best is not None
            return self.rows("random", budget, best)
        if kind not in ("random", LABELLED):
            return self.state.results[Job(kind, budget, 0.0, -1)]["rows"]
        seed = DRAWS + 100 * self.config.seed + number
        if rows == budget:
            return draw(train, self.config.size, seed)
        return random_order(len(train), seed)[:rows]

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Training rows as they are exported: of a conversation, the last turn is the label."""
        train, encode = self.prepared.train, self.prepared.template.as_exported
        return [
            encode(train.examples[i])
            if sum(m.role == "assistant" for m in train.examples[i].messages) > 1
            else train.rows[i]
            for i in indices
        ]

    def passes(self, kind: str, rows: int) -> float:
        """For how many passes a set is trained on, as far as is known."""
        if kind == "zero-shot":
            return 0.0
        return self.state.passes(rows)[0] if kind == "random" else self.state.epochs

    def used(self, kind: str, rows: int) -> list[Mapping[str, Any]]:
        """Results of a set's trainings at its own passes, without those that diverged."""
        key = (kind, rows, self.passes(kind, rows))
        return [
            result
            for job, result in sorted(self.state.results.items())
            if (job.kind, job.rows, job.passes) == key
            and not job.choosing
            and not result["diverged"]
        ]

    def measured(self, kind: str, rows: int) -> Measured | None:
        """A set's figures; None: there are none."""
        found = self.used(kind, rows)
        if not found:
            return None
        return Measured(
            rows,
            tuple(sum(result["test"]) / sum(self.tokens) for result in found),
            np.mean([result["test"] for result in found], axis=0),
            trained=kind != "zero-shot",
        )

    def done(self) -> list[Mapping[str, Any]]:
        """Results of all trainings, whatever became of them."""
        return [result for job, result in self.state.results.items() if not job.choosing]

    @property
    def tokens(self) -> list[int]:
        """Response tokens of every test row, as the loss counts them."""
        return [sum(row.response[1:]) for row in self.prepared.report.rows]

    def _chosen(self, method: str) -> str:
        if dear(method):  # chosen by trainings: their recipe is part of the choice
            rate, epochs = self.recipe.learning_rate, self.recipe.epochs
            return f"choosing/{method}-{rate:g}-{epochs:g}/chosen"
        return f"choosing/{method}/chosen"

    def _task(self, method: str) -> Task:
        place = (self.folder.path / self._chosen(method)).parent
        selection = SelectionConfig(minutes=SWAPPING * self.config.minutes)
        selection = with_judge(selection, self.config.data)
        return Task(
            self.prepared,
            self.recipe,
            selection,
            self.config.seed,
            place,
            self.progress,
            self.config.size,
        )

    def _measure(self, job: Job) -> dict[str, Any]:
        began = time.perf_counter()
        training, model = Training(None), self.prepared.model
        if job.passes:
            rows = self.encoded(self.rows(job.kind, job.rows, job.number))
            data = Rows.of(rows, self._pad)
            training = Training(data, epochs=job.passes)
            if job.kind == LABELLED:
                data = with_labels(self.prepared, self.teacher(), data)
                training = replace(training, data=data, faster=self.config.label_rate)
        done = self._train(job, training)
        if (job.kind, job.rows, job.number) == ("random", self.state.sizes.total, 0):
            self._keep(job, done.theta)
        test = response_nll(model, done.theta, self.prepared.report.rows).nll
        found = None
        if self.state.needs_validation(job):
            found = response_nll(model, done.theta, self.prepared.development.rows)
        finite = bool(np.isfinite(test).all() and (found is None or np.isfinite(found.nll).all()))
        return {
            "job": {"kind": job.kind, "rows": job.rows, "passes": job.passes, "number": job.number},
            "tokens_trained": sum(map(len, training.data.rows)) if training.data else 0,
            "steps": done.steps,
            "training_seconds": done.seconds,
            "seconds": time.perf_counter() - began,
            "diverged": not finite,
            "validation": [float(x) for x in found.nll] if found and finite else None,
            "tokens": [int(n) for n in found.tokens] if found else None,
            "test": [float(x) for x in test] if finite else None,
        }

    def teacher(self) -> Tensor:
        """LoRA's values after the training on all rows, (P,)."""
        job = self.state.teacher()
        assert job is not None
        return self._keep(job).to(self.prepared.model.device)

    def _keep(self, job: Job, theta: Tensor | None = None) -> Tensor:
        """What a training on all rows ended with: kept, or as it was kept; else trained again."""

        def make() -> dict[str, Tensor]:
            if theta is not None:
                return {"theta": theta}
            data = Rows.of(self.encoded(self.rows(job.kind, job.rows, job.number)), self._pad)
            return {"theta": self._train(job, Training(data, epochs=job.passes)).theta}

        name = f"{self._place}/teacher-{job.passes:g}"
        return self.folder.tensors(name, make, of={"seed": f"{self.config.seed}"})["theta"]

    @property
    def _pad(self) -> int:
        return self.prepared.model.tokenizer.pad_token_id

    def _train(self, job: Job, training: Training) -> Trained:
        """One training as a table's are, with a bar."""
        seed = job.number + (AFRESH if job.kind == "best-of" else 0)
        if training.data is None:
            return train(self.prepared, self.recipe, training, seed)
        name = f"{self.state.sizes.name(job.kind, job.rows)}, {job.number + 1}"
        steps = of_training(self.recipe, training).total_steps(len(training.data.rows))
        with self.progress.stage(name, steps) as tick:

            def told(done: int, _: int, loss: float) -> None:
                tick(done, loss)

            return train(self.prepared, self.recipe, training, seed, told)
