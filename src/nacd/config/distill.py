"""What `nacd distill` is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nacd.config.budget import BudgetText, HasBudget, budget_text
from nacd.config.limits import MOST, check_counts, check_seed
from nacd.config.recipe import Recipe
from nacd.config.settings import check_values, convert
from nacd.config.shared import TableConfig
from nacd.errors import UserError
from nacd.store.renamed import old_names_too
from nacd.store.tracking import check_tracker

TABLE_ROWS = ("zero-shot", "random", "seeds", "random-prompts", "soft", "text", "full")


@old_names_too
@dataclass(frozen=True)
class DistillConfig(HasBudget, TableConfig):
    """`nacd distill`: from a data file to distilled text."""

    budget: BudgetText = BudgetText("5%")
    """Size of the distilled set: rows (`112`), tokens (`20000t`) or a percentage (`5%`) of the
    training rows that are left once the held-out parts are set aside."""
    compare: tuple[str, ...] = TABLE_ROWS
    """Rows of the final table; `full` trains on all rows: leave it out if that is dear."""
    trainings: int = 3
    """Trainings behind each row of the table, each of another seed (`random`: of other rows)."""

    def __post_init__(self) -> None:
        """Keep a path and a text, however they were given."""
        convert(self, out=Path, budget=budget_text)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            UserError: a flag's value is out of range; it is named.
        """
        check_values(self)
        self.recipe.check()
        check_tuning(self.tune, self.tune_rates, self.recipe)
        self.expert.check()
        check_tracker(self.track)
        if not self.data.data:
            raise UserError(
                "--data is missing: give a JSONL, JSON, CSV or Parquet file, or a hub id."
            )
        check_counts(
            ("--outer-steps", self.outer.outer_steps, 0),
            ("--segments", self.outer.segments, 1),
            ("--objective-rows", self.outer.objective_rows, 1),
            ("--check-every", self.outer.check_every, 1),
            ("--check-trainings", self.outer.check_trainings, 1),
            ("--candidates", self.outer.candidates, 2),
            ("--window", self.outer.window, 0),
            ("--pool", self.outer.pool, 0),
            ("--agreement", self.outer.agreement, 0),
            ("--renew", self.outer.renew, 1),
            ("--trainings", self.trainings, 1),
            ("--lora-rank", self.model.lora_rank, 1),
            ("--micro-tokens", self.model.micro_tokens, 0),
            ("--max-tokens", self.data.max_tokens, 2),
            ("--target-rows", self.data.target_rows, 0),
            ("--expert-start", self.outer.expert_start, 0),
            ("--expert-ahead", self.outer.expert_ahead, 0),
            ("--step-size", self.outer.step_size, 0),
            ("--rate-step-size", self.outer.rate_step_size, 0),
            ("--beta", self.outer.beta, 0),
        )
        for flag, value in (
            ("--fd-eps", self.outer.fd_eps),
            ("--full-epochs", self.full_epochs),
            *(("--tune-rates", rate) for rate in self.tune_rates),
        ):
            if not 0 < value <= MOST:
                raise UserError(f"{flag} {value}: must be above 0 and at most {MOST:,}.")
        if self.outer.agreement == 1:
            raise UserError("--agreement 1: one inner loop agrees with itself; give 2, 3, or 0.")
        if not 0 < self.outer.start_share < 1:
            raise UserError(f"--start-share {self.outer.start_share}: must lie between 0 and 1.")
        if not 0 <= self.outer.trim < 1:
            raise UserError(f"--trim {self.outer.trim}: a share, at least 0 and below 1.")
        if not self.outer.cold > 0:
            raise UserError(f"--cold {self.outer.cold}: a temperature, must be above 0.")
        if not re.fullmatch(r"prompt|prefix:[1-9]\d*", self.outer.learn):
            raise UserError(f"--learn {self.outer.learn}: give `prompt`, or `prefix:8`, say.")
        digits = self.outer.learn.removeprefix("prompt").removeprefix("prefix:")
        if len(digits) > 7 or int(digits or 0) >= self.data.max_tokens:
            raise UserError(
                f"--learn {self.outer.learn}: a prefix must be shorter than --max-tokens "
                f"{self.data.max_tokens}; give a shorter one."
            )
        check_seed(self.seed)
        if self.model.shard and (
            self.outer.objective == "trajectory"
            or self.start_by == "less"
            or self.model.quantize != "none"
        ):
            raise UserError(
                "--shard: goes with none of --objective trajectory, --start-by less and "
                "--quantize; leave it out."
            )
        unknown = sorted(set(self.compare) - set(TABLE_ROWS))
        if unknown:
            raise UserError(
                f"--compare {' '.join(unknown)}: unknown; the rows are {', '.join(TABLE_ROWS)} "
                "(for others: `nacd compare --methods`)."
            )
        _ = self.size


def check_tuning(tune: bool, rates: tuple[float, ...], recipe: Recipe) -> None:
    """Refuse flags that say two things of how the recipe is found.

    Raises:
        UserError: `--tune` beside `--tune-rates` or `--steps`.
    """
    if tune and rates:
        raise UserError(
            "--tune finds learning rate and epochs together, --tune-rates the rate alone; drop "
            "--tune-rates."
        )
    if tune and recipe.steps:
        raise UserError(
            f"--steps {recipe.steps}: --tune finds the number of epochs; drop one of the two."
        )
