"""What a grid will take, before anything of it runs: measured steps times counted tokens.

Choices, outer steps and trainings that its folder already holds take nothing; a choice half-way
counts whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nacd.comparison.config import DISTILLED, CompareConfig
from nacd.comparison.grid import cell_folder, folder_name
from nacd.config import budget_rows, decided, with_judge
from nacd.data import Encoded, collate
from nacd.files import read_json
from nacd.meta import PASSES, initial_state, step
from nacd.pool import students, window_of
from nacd.prepare import Prepared
from nacd.recipe import Recipe
from nacd.selection import METHODS
from nacd.selection.best_of import JUDGES
from nacd.tuning import SEARCHED
from nacd.units import duration

FORWARD = 0.4
"""Time of a forward pass, in ordinary steps: roughly."""


@dataclass(frozen=True)
class Forecast:
    """Seconds by kind of work."""

    before: dict[str, float]
    """Choosing, distilling and tuning, each by its name -> seconds."""
    training: dict[str, float]
    """Target model -> seconds of its trainings and evaluations."""
    trainings: int
    done: int = 0
    """Trainings of them that an earlier call has made."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return math.fsum((*self.before.values(), *self.training.values()))

    def describe(self) -> str:
        """A few lines, at 80 columns."""
        of = f"{self.trainings} trainings"
        if self.done:
            of += f", {self.done} of them done"
        lines = [f"the grid: {of}; about {duration(self.seconds)} to go"]
        lines += [
            f"  {name}: {duration(seconds)}"
            for name, seconds in self.before.items()
            if seconds >= 1
        ]
        lines += [
            f"  training and measuring {Path(name).name}: {duration(seconds)}"
            for name, seconds in self.training.items()
            if seconds >= 1 or not self.done
        ]
        return "\n".join(lines)


def seconds_per_token(prepared: Prepared, recipe: Recipe) -> float:
    """Seconds a token of one ordinary training step on a real batch, the second of two."""
    model = prepared.model
    size = min(recipe.batch_size, len(prepared.train))
    batch = collate(prepared.train.rows[:size], model.tokenizer.pad_token_id)
    theta = model.fresh_theta(0)
    state = initial_state(recipe, theta)
    rate = torch.tensor(recipe.learning_rate, device=model.device)
    taken = 0.0
    for k in range(2):
        began = time.perf_counter()
        loss, gradient, _ = model.value_and_grad(theta, batch)
        step(recipe, theta, state, gradient, rate, k)
        float(loss)  # waits for the device
        taken = time.perf_counter() - began
    return taken / batch.tokens


def forecast(
    config: CompareConfig,
    source: Prepared,
    per_token: Mapping[str, float],
    recipe: Recipe,
    elsewhere: Sequence[Encoded] = (),
    folder: Path | None = None,
) -> Forecast:
    """What the grid takes, from counted tokens.

    Args:
        config: the grid.
        source: the model that chooses, with all rows.
        per_token: target model -> seconds a token of training; the source's first.
        recipe: of every training.
        elsewhere: rows of other data that every trained model is measured on.
        folder: of the comparison, where an earlier call may have left something.
    """
    there = _Folder(folder)
    source_name, own = next(iter(per_token.items()))
    tokens, report = _tokens(source.train.rows), _tokens(source.report.rows)
    measuring = FORWARD * (report + _tokens(elsewhere))
    answers = [len(e.choices) for e in source.report.examples if e.choices]
    answering = FORWARD * report * sum(answers) / max(1, len(answers))
    before: dict[str, float] = {}
    training = dict.fromkeys(per_token, 0.0)
    trainings, done = 0, 0
    for budget in config.budgets:
        rows = len(budget_rows(budget, list(source.train.rows), [*range(len(source.train))]))
        work = _Work(config, source, recipe, rows)
        for method in config.methods:
            spent = work.choosing(method) if method in METHODS else 0.0
            if spent and there.read(f"choosing/{budget}/{method}/chosen") is None:
                before[f"choosing by {method}, budget {budget}"] = own * spent
        if not config.runs and any(method in DISTILLED for method in config.methods):
            steps = config.outer.outer_steps
            shares = [there.learned(budget, n, steps) for n in range(config.distillations)]
            if left := math.fsum(1 - share for share in shares):
                before[f"distilling, budget {budget}"] = own * left * work.distilling()
        for name, speed in per_token.items():
            searched = SEARCHED if config.tune else len(config.tune_rates)
            if config.tune and config.runs and name == source_name:
                searched = 0  # the runs' recipe is taken
            if searched and there.read(f"tuning/{folder_name(name)}-{budget}") is None:
                spent = speed * searched * work.look
                before[f"tuning {Path(name).name}, budget {budget}"] = spent
            for method in config.methods:
                if method == "soft" and name != source_name:
                    continue
                kinds = [(method, config.seeds, work.one)]
                if method == "zero-shot":
                    kinds = [(method, 1, 0.0)]
                if method == "full":
                    kinds = [
                        ("full-equal-steps", config.seeds, work.one),
                        (method, config.full_seeds, config.full_epochs * tokens),
                    ]
                for row, count, one in kinds:
                    trainings += count
                    for seed in range(count):
                        cell = there.read(f"{cell_folder(name, budget, row, seed)}/result")
                        spent = 0.0 if cell else measuring
                        if cell and elsewhere and cell.get("elsewhere") is None:
                            spent = FORWARD * _tokens(elsewhere)
                        if row in config.accuracy and not (cell and cell.get("accuracy")):
                            spent += answering
                        done += not spent
                        training[name] += speed * (spent and one + spent)
    return Forecast(before, training, trainings, done)


class _Folder:
    """What a comparison's folder holds."""

    def __init__(self, path: Path | None):
        self.path = path

    def read(self, name: str) -> dict[str, Any] | None:
        """What is kept under the name; None: nothing yet."""
        file = self.path and self.path / f"{name}.json"
        return read_json(file) if file and file.is_file() else None

    def learned(self, budget: str, number: int, steps: int) -> float:
        """The share of a distillation's outer steps that are done."""
        file = self.path and self.path / f"distilled/{budget}-{number}/distill/metrics.jsonl"
        if not file or not file.is_file():
            return 0.0
        with file.open(encoding="utf-8") as lines:
            return min(1.0, sum(1 for _ in lines) / (1 + steps))  # the first is the start


class _Work:
    """What the stages of one budget take, in tokens of ordinary training."""

    def __init__(self, config: CompareConfig, source: Prepared, recipe: Recipe, rows: int):
        self.config, self.source, self.recipe, self.rows = config, source, recipe, rows
        self.tokens = _tokens(source.train.rows)
        self.targets = _tokens(source.target.rows)
        self.mean = self.tokens / len(source.train)
        self.steps = recipe.total_steps(rows)
        self.step = min(recipe.batch_size, rows) * self.mean
        self.one = self.steps * self.step
        """One training on the budget's rows."""
        self.look = self.one + FORWARD * _tokens(source.development.rows)
        """One training, and its loss on the development rows."""

    def choosing(self, method: str) -> float:
        """By a method of `nacd select`; 0 where it reads no model."""
        selection = with_judge(self.config.selection, self.config.data)
        if method == "kcenter":
            return FORWARD * self.tokens
        if method == "rds+":
            return FORWARD * (self.tokens + self.targets)
        if method == "less":  # warm-up and features, at the end of every epoch of it
            once = self.tokens * (1 + selection.warmup_share) + self.targets
            return selection.warmup_epochs * once
        if method == "best-of":
            judges = min(JUDGES, len(self.source.train) // 4) * self.mean
            if selection.judge == "target":
                judges = self.targets
            return selection.tries * (self.one + FORWARD * judges)
        if method == "trajectory":
            groups = math.ceil(len(self.source.train) / self.rows)
            loop = PASSES["one-sided"] * self.one + self.targets
            return selection.weight_passes * groups * loop
        return 0.0

    def distilling(self) -> float:
        """One distillation: its seed rows, its experts, the outer loop and its looks."""
        outer = decided(self.config.outer, self.config.data)
        ahead, steps = window_of(outer, self.recipe, self.rows)
        inner = PASSES[outer.engine] * steps * self.step
        judged = {
            "target-loss": self.targets,
            "train-loss": outer.objective_rows * self.mean,
            "trajectory": 0.0,
        }[outer.objective]
        looks = 1 + math.ceil(outer.outer_steps / outer.check_every)
        segments = outer.outer_steps * outer.segments + outer.agreement
        loop = segments * (inner + judged)
        loop += students(outer, outer.outer_steps) * ahead * self.step
        looking = looks * 2 * outer.check_seeds * self.look
        return self.choosing(self.config.seeds_by) + self._experts() + loop + looking

    def _experts(self) -> float:
        expert = self.config.expert
        if self.config.outer.objective != "trajectory" or expert.expert_from:
            return 0.0
        recipe = expert.recipe(self.recipe)
        steps = recipe.total_steps(len(self.source.train))
        held_out = FORWARD * _tokens(self.source.development.rows) / expert.snapshot_every
        return expert.experts * steps * (recipe.batch_size * self.mean + held_out)


def _tokens(rows: Sequence[Encoded]) -> int:
    return sum(len(row) for row in rows)
