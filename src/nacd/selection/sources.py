"""What searches over sets of rows train and judge with: a model, and the rows in its own tokens.

A row is weighed by carrying the loss on other rows back through the last epoch of a training by the
recipe (`nacd.meta.unvisited`): that is where meta-gradients agree over orders (docs/results.md).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nacd.config import DataConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Splits, bucketed, collate, training_order
from nacd.data.rows import Rows
from nacd.errors import UserError
from nacd.meta import FirstOrder, unvisited
from nacd.meta.objectives import target_objective
from nacd.model.lora import LoraModel
from nacd.model.prepare import prepare
from nacd.selection.judges import judges_of
from nacd.selection.method import Task, forward_flops
from nacd.selection.random import random_order
from nacd.training.evaluation import RowNll, response_nll
from nacd.training.inner import InnerLoop, Start
from nacd.training.student import train_student
from nacd.training.update import initial_state

OBJECTIVE_ROWS = 256
"""Training rows whose loss a row is weighed by, others in every round. Two samples of half as many
agree by rank at 0.8 on what rows are worth to one set (docs/results.md)."""
PROBES = 4
"""Steps of the last epoch at which rows are weighed, each row at one of them."""
BATCH = 24
"""Rows of a forward pass that weighs."""
EPS = 2e-3
WEIGH_EPS = 5e-3
"""Distance at which a row is weighed; its two losses must differ by more than rounding."""
TRIM = 0.01
PARTS = ("train", "target", "development", "report")


class ModelSource:
    """A model that trains on rows by a recipe, and weighs others.

    Args:
        method: for error messages.
        model: the model; its LoRA is overwritten.
        recipe: of every training; always shuffled.
        rows: all rows, as chosen rows are trained on.
        judges: rows whose loss decides.
        objective: rows whose loss weighs; None: training rows, others every time.
        aside: rows that must not weigh.
    """

    def __init__(
        self,
        method: str,
        model: LoraModel,
        recipe: Recipe,
        rows: Sequence[Encoded],
        judges: Sequence[Encoded],
        objective: Sequence[Encoded] | None,
        aside: set[int],
    ):
        self.method = method
        self.model, self.recipe = model, replace(recipe, shuffle=True)
        self.rows, self.judges, self.objective, self.aside = rows, judges, objective, aside
        self.flops = 0.0

    def nll(self, rows: Sequence[int], seed: int) -> RowNll:
        """NLL of the judging rows after a training on `rows`.

        Raises:
            UserError: the training diverged.
        """
        model, pad = self.model, self.model.tokenizer.pad_token_id
        theta = train_student(model, self.recipe, Rows.of([self.rows[i] for i in rows], pad), seed)
        found = response_nll(model, theta, self.judges)
        trained = self.recipe.epochs * sum(len(self.rows[i]) for i in rows)
        self.flops += forward_flops(model, 2 * trained + sum(len(row) for row in self.judges))
        self._check(bool(np.isfinite(found.nll).all()))
        return found

    def worth(self, rows: Sequence[int], seed: int, beside: Sequence[int]) -> list[float]:
        """What each of `beside` is worth late in a training on `rows`, at weight 0.

        Standardised among the rows that were weighed at the same step.

        Raises:
            UserError: the training diverged.
        """
        model, recipe, pad = self.model, self.recipe, self.model.tokenizer.pad_token_id
        judging = self._objective_rows(rows, seed, beside)
        total = recipe.total_steps(len(rows))
        order = training_order(len(rows), recipe.batch_size, total, seed)
        batches = [collate([self.rows[rows[i]] for i in where], pad) for where in order]
        window = min(total, math.ceil(len(rows) / recipe.batch_size))
        loop, theta = InnerLoop(model, recipe, total), model.fresh_theta(seed)
        log_rate = torch.tensor(math.log(recipe.learning_rate), device=model.device)
        start = Start(theta, initial_state(recipe, theta))
        at, _ = loop.run(start, batches[: total - window], log_rate, None)
        # not near the end, where the rate is nearly 0 and nothing is worth anything
        steps = sorted({round(x) for x in np.linspace(0, max(0, window - 4), PROBES)})
        places = [
            [j for j in range(len(beside)) if j % len(steps) == number]
            for number in range(len(steps))
        ]
        places = [sorted(js, key=lambda j: len(self.rows[beside[j]])) for js in places]
        candidates = {
            step: [
                collate([self.rows[beside[j]] for j in js[k : k + BATCH]], pad)
                for k in range(0, len(js), BATCH)
            ]
            for step, js in zip(steps, places, strict=True)
            if js
        }
        swept, found = unvisited(
            loop,
            at,
            batches[total - window :],
            log_rate,
            target_objective(model, bucketed(judging, 16, pad, model.device)),
            FirstOrder(EPS, central=False),
            candidates,
            eps=WEIGH_EPS,
            trim=TRIM,
        )
        worth = np.zeros(len(beside))
        for step, js in zip(steps, places, strict=True):
            if js:
                mine = -found[step].cpu().double().numpy()
                worth[js] = (mine - mine.mean()) / (mine.std() + 1e-12)
        late = sum(batch.tokens for batch in batches[total - window :])
        seen = sum(batch.tokens for batch in batches) + late + sum(len(row) for row in judging)
        weighed = sum(len(self.rows[i]) for i in beside)
        self.flops += forward_flops(model, 2 * seen + 2 * weighed)
        self._check(math.isfinite(swept.value) and bool(np.isfinite(worth).all()))
        return worth.tolist()

    def _objective_rows(
        self, rows: Sequence[int], seed: int, beside: Sequence[int]
    ) -> Sequence[Encoded]:
        if self.objective is not None:
            return self.objective
        used = {*rows, *beside} | self.aside
        free = [i for i in random_order(len(self.rows), seed) if i not in used]
        return [self.rows[i] for i in free[:OBJECTIVE_ROWS]] or self.judges

    def _check(self, finite: bool) -> None:
        if not finite:
            raise UserError(
                f"--method {self.method}: training diverges at --learning-rate "
                f"{self.recipe.learning_rate:g}; give a smaller one."
            )


def others(task: Task, method: str, aside: set[int]) -> list[ModelSource]:
    """The models of --also, with the same rows in their own tokens.

    Raises:
        UserError: one cannot be loaded, or not with these rows.
    """
    prepared, config = task.prepared, task.config
    template = prepared.template
    written = {"chat": "auto", "custom": template.text or ""}.get(template.name, template.name)
    parts = {name: getattr(prepared, name).examples for name in PARTS}
    rates = config.also_rates or [task.recipe.learning_rate] * len(config.also)
    found = []
    for name, rate in zip(config.also, rates, strict=True):
        other = prepare(
            replace(prepared.model.config, model=name),
            # rows that the main model takes are short enough
            DataConfig(template=written, max_tokens=sys.maxsize, target_rows=len(prepared.target)),
            task.progress.say,
            Splits(**{part: list(examples) for part, examples in parts.items()}),
        )
        theirs = replace(task, prepared=other)
        found.append(
            ModelSource(
                method,
                other.model,
                replace(task.recipe, learning_rate=rate),
                [theirs.trained_row(i) for i in range(len(other.train))],
                judges_of(theirs, method)[0],
                other.target.rows if config.judge == "target" else None,
                aside,
            )
        )
    return found
