"""The training recipe: what the exported data will be trained with, and what the inner loop is.

The schedule is transformers' own (`get_linear_schedule_with_warmup` and its kin), so that the same
numbers given to TRL's SFTTrainer give the same training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nacd.config.limits import MOST, check_counts
from nacd.errors import UserError
from nacd.store.folder import Run


@dataclass(frozen=True)
class Recipe:
    """Optimiser, learning rate, batch size and length of a training run."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser of the inner loop, of the results table and of `nacd train`."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    batch_size: int = 8
    """Rows a step."""
    epochs: float = 4.0
    """Passes over the rows, where `steps` is 0."""
    shuffle: bool = True
    """Visit the rows in a new seeded order every epoch; off: as they are given, every epoch."""
    steps: int = 0
    """Optimiser steps; 0: as many as `epochs` gives."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: linear or cosine to 0, or constant."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    weight_decay: float = 0.0
    """Weight decay on the LoRA matrices (decoupled for AdamW)."""
    momentum: float = 0.0
    """Momentum of SGD."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's epsilon outside the square root."""
    root_eps: float = 0.0
    """AdamW's epsilon inside the square root: smooths meta-gradients (arXiv 2503.13751)."""

    def check(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            UserError: a value out of range; the flag is named.
        """
        check_counts(("--batch-size", self.batch_size, 1))
        for flag, value, fits, expected in (
            ("--learning-rate", self.learning_rate, self.learning_rate > 0, "must be above 0"),
            ("--clip", self.clip, self.clip >= 0, "must be at least 0 (0: no clipping)"),
            ("--weight-decay", self.weight_decay, self.weight_decay >= 0, "must be at least 0"),
            ("--eps", self.eps, self.eps >= 0, "must be at least 0"),
            ("--root-eps", self.root_eps, self.root_eps >= 0, "must be at least 0"),
            (
                "--warmup",
                self.warmup,
                0 <= self.warmup <= 1,
                "a share of the steps, between 0 and 1",
            ),
            ("--momentum", self.momentum, 0 <= self.momentum < 1, "must be at least 0, below 1"),
            ("--beta1", self.beta1, 0 <= self.beta1 < 1, "must be at least 0, below 1"),
            ("--beta2", self.beta2, 0 <= self.beta2 < 1, "must be at least 0, below 1"),
        ):
            if not (fits and math.isfinite(value)):
                raise UserError(f"{flag} {value}: {expected}.")
        lasts = self.epochs > 0 and math.isfinite(self.epochs)
        if self.steps < 0 or (self.steps == 0 and not lasts):
            raise UserError(f"--steps {self.steps} --epochs {self.epochs}: give one above 0.")
        for flag, length in (("--steps", self.steps), ("--epochs", self.epochs)):
            if length > MOST:
                raise UserError(f"{flag} {length:g}: must be at most {MOST:,}.")

    def order_seed(self, seed: int) -> int | None:
        """Seed of the order in which rows are visited; None: as they are given."""
        return seed if self.shuffle else None

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of a training on `rows` rows."""
        if self.steps:
            return self.steps
        return max(1, math.ceil(math.ceil(rows / self.batch_size) * self.epochs))

    def check_rows(
        self,
        rows: int,
        *,
        batch: str = "--batch-size",
        epochs: str = "--epochs",
        steps: str = "--steps",
    ) -> None:
        """Refuse a training that its warm-up keeps at a learning rate of 0, or that never ends.

        Args:
            rows: how many are trained on.
            batch: flag of the rows a step, for the message.
            epochs: flag of the epochs.
            steps: flag of the steps.

        Raises:
            UserError: no step of it would move anything, or it has too many.
        """
        total = self.total_steps(rows)
        if total > MOST:
            raise UserError(
                f"{epochs} {self.epochs:g}: {rows} rows make {total:,} optimiser steps, and a "
                f"training has at most {MOST:,}; give fewer."
            )
        if any(self.rate(step, total) for step in range(total)):
            return
        still = f"--warmup {self.warmup} gives a learning rate of 0: nothing is learned"
        if self.steps:
            raise UserError(
                f"{steps} {self.steps}: to the only step {still}. Raise {steps}, or give "
                "--warmup 0."
            )
        smaller = f"Lower {batch}, raise" if rows > 1 else "Raise"
        raise UserError(
            f"{batch} {self.batch_size}: {rows} rows make 1 optimiser step, to which {still}. "
            f"{smaller} {epochs}, or give --warmup 0."
        )

    def rate(self, step: int, total: int) -> float:
        """The schedule's factor on the learning rate at a 0-based step of `total`."""
        warm = math.ceil(total * self.warmup)
        if step < warm:
            return step / max(1, warm)
        if self.schedule == "constant":
            return 1.0
        done = (step - warm) / max(1, total - warm)
        if self.schedule == "linear":
            return max(0.0, 1.0 - done)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))

    def describe(self) -> str:
        """Optimiser, rate, length, batch and clipping in a line."""
        plural = "s" * (self.epochs != 1)
        length = f"{self.steps} steps" if self.steps else f"{self.epochs:g} epoch{plural}"
        name = "AdamW" if self.optimizer == "adamw" else "SGD"
        return (
            f"{name}, learning rate {self.learning_rate:g} ({self.schedule}, warm-up "
            f"{self.warmup:.0%}), {length}, {self.batch_size} rows a step, clipped at "
            f"{self.clip:g}"
        )


def recipe_of(run: Run) -> Recipe:
    """The recipe of the run's trainings, with the learning rate and epochs that were found."""
    names = Recipe.__dataclass_fields__
    known = {key: value for key, value in run.setting("recipe", {}).items() if key in names}
    found = run.tuning or {}
    known |= {key: found[key] for key in ("learning_rate", "epochs") if key in found}
    return Recipe(**known)
