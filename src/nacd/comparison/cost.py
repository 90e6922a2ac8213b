"""What a grid will take, before anything of it runs: measured steps times counted tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nacd.comparison.config import LEARNED, CompareConfig
from nacd.config import budget_rows
from nacd.data import collate
from nacd.meta import PASSES, initial_state, step
from nacd.prepare import Prepared
from nacd.recipe import Recipe
from nacd.units import duration

FORWARD = 0.4
"""Time of a forward pass, in ordinary steps: roughly."""


@dataclass(frozen=True)
class Forecast:
    """Seconds by kind of work."""

    choosing: dict[str, float]
    """`budget method` -> seconds."""
    training: dict[str, float]
    """Target model -> seconds of all its trainings and evaluations."""
    trainings: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return math.fsum((*self.choosing.values(), *self.training.values()))

    def describe(self) -> str:
        """A few lines, at 80 columns."""
        lines = [f"the grid: {self.trainings} trainings, about {duration(self.seconds)} in all"]
        for name, seconds in self.choosing.items():
            if seconds >= 1:
                lines.append(f"  choosing, {name}: {duration(seconds)}")
        lines += [
            f"  training and measuring {name}: {duration(seconds)}"
            for name, seconds in self.training.items()
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
    config: CompareConfig, source: Prepared, per_token: Mapping[str, float], recipe: Recipe
) -> Forecast:
    """What the grid takes, from counted tokens.

    Args:
        config: the grid.
        source: the model that chooses, with all rows.
        per_token: target model -> seconds a token of training; the source's first.
        recipe: of every training.
    """
    source_name, own = next(iter(per_token.items()))
    tokens = sum(len(row) for row in source.train.rows)
    mean = tokens / len(source.train)
    targets = sum(len(row) for row in source.target.rows)
    measuring = FORWARD * sum(len(row) for row in source.report.rows)
    choosing: dict[str, float] = {}
    training = dict.fromkeys(per_token, 0.0)
    trainings = 0
    for budget in config.budgets:
        order = list(range(len(source.train)))
        rows = len(budget_rows(budget, list(source.train.rows), order))
        steps = recipe.total_steps(rows)
        one = steps * min(recipe.batch_size, rows) * mean
        groups = math.ceil(len(source.train) / rows)
        selection = config.selection
        looks = max(1, config.outer.outer_steps // config.outer.check_every)
        spent = {
            "kcenter": FORWARD * tokens,
            "rds": FORWARD * (tokens + targets),
            "less": selection.warmup_epochs * (tokens * (1 + selection.warmup_share) + targets),
            "trajectory": selection.weight_passes
            * groups
            * (PASSES["first-order"] * one + targets),
        }
        for method in config.methods:
            if method in spent:
                choosing[f"{budget} {method}"] = own * spent[method]
        if not config.runs and any(method in LEARNED for method in config.methods):
            inner = PASSES.get(config.outer.engine, PASSES["first-order"]) * one
            outer = config.outer.outer_steps * config.outer.segments * (inner + targets)
            choosing[f"{budget} distilling"] = (
                own * config.distillations * (outer + looks * 2 * config.outer.check_seeds * one)
            )
        for name, speed in per_token.items():
            for method in config.methods:
                if method == "soft" and name != source_name:
                    continue
                count = 1 if method == "zero-shot" else config.seeds
                work = 0.0 if method == "zero-shot" else one
                training[name] += speed * count * (work + measuring)
                trainings += count
                if method == "full":
                    work = config.full_epochs * tokens + measuring
                    training[name] += speed * config.full_seeds * work
                    trainings += config.full_seeds
    return Forecast(choosing, training, trainings)
