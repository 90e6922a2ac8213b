"""How expert trajectories are recorded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from nacd.config.limits import MOST, check_counts
from nacd.config.recipe import Recipe
from nacd.errors import UserError


@dataclass(frozen=True)
class ExpertConfig:
    """How expert trajectories of training on the full set are recorded."""

    experts: int = 1
    """K, the number of experts; each has a seed of its own."""
    expert_optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser of the experts."""
    expert_rate: float = 1e-3
    """Peak learning rate of the experts."""
    expert_epochs: float = 1.0
    """Passes of an expert over the full set."""
    expert_steps: int = 0
    """Steps of an expert; 0: as many as --expert-epochs gives."""
    expert_batch: int = 16
    """Rows a step of an expert."""
    expert_momentum: float = 0.0
    """Momentum of the experts' SGD."""
    expert_from: tuple[str, ...] = ()
    """Trainer output folders (peft checkpoints of one run each) to import instead of training."""
    snapshot_every: int = 4
    """S: a snapshot (with the optimiser's moments) every S steps."""

    def check(self) -> None:
        """Refuse what no expert can be trained with.

        Raises:
            UserError: a flag's value is out of range; it is named.
        """
        check_counts(
            ("--experts", self.experts, 1),
            ("--snapshot-every", self.snapshot_every, 1),
            ("--expert-batch", self.expert_batch, 1),
        )
        if not 0 < self.expert_rate < math.inf:
            raise UserError(f"--expert-rate {self.expert_rate}: must be above 0.")
        lasts = 0 < self.expert_epochs < math.inf
        if self.expert_steps < 0 or (self.expert_steps == 0 and not lasts):
            raise UserError(
                f"--expert-steps {self.expert_steps} --expert-epochs {self.expert_epochs}: give "
                "one above 0."
            )
        for flag, length in (
            ("--expert-steps", self.expert_steps),
            ("--expert-epochs", self.expert_epochs),
        ):
            if length > MOST:
                raise UserError(f"{flag} {length:g}: must be at most {MOST:,}.")

    def check_rows(self, base: Recipe, rows: int) -> None:
        """Refuse experts that their warm-up would keep at a learning rate of 0.

        Raises:
            UserError: as `Recipe.check_rows`, by the experts' flags.
        """
        self.recipe(base).check_rows(
            rows, batch="--expert-batch", epochs="--expert-epochs", steps="--expert-steps"
        )

    def recipe(self, base: Recipe) -> Recipe:
        """The experts' recipe; schedule, clipping and AdamW's constants are the student's.

        The full set is always shuffled: its file's order may be one of subjects.
        """
        return dataclasses.replace(
            base,
            shuffle=True,
            optimizer=self.expert_optimizer,
            learning_rate=self.expert_rate,
            epochs=self.expert_epochs,
            steps=self.expert_steps,
            batch_size=self.expert_batch,
            momentum=self.expert_momentum,
        )
