"""What `nacd compare` may be told: methods x budgets x target models x seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from nacd.config import (
    DataConfig,
    DistillConfig,
    ExpertConfig,
    OuterLoopConfig,
    SelectionConfig,
    parse_budget,
)
from nacd.errors import UserError
from nacd.models import ModelConfig
from nacd.recipe import Recipe
from nacd.selection import METHODS, check_method

LEARNED = ("soft", "text", "text-shuffled")
"""Rows of the table that a distillation learned."""
DISTILLED = ("seeds", "seeds-shuffled", "random-prompts", "other-prompts", *LEARNED)
"""Rows of the table that come from a distillation, or from its seeds."""
ROWS = (
    "zero-shot",
    "random",
    *(name for name in METHODS if name != "random"),
    *DISTILLED,
    "full",
)
"""Every row, in the table's order."""
FREE = (
    "out",
    "methods",
    "budgets",
    "target_models",
    "seeds",
    "full_seeds",
    "accuracy",
    "elsewhere",
    "runs",
)
"""Keys that may differ when a comparison goes on: they add cells, and change none. (Other --runs
are refused once there are rows of a distillation.)"""


@dataclass(frozen=True)
class CompareConfig:
    """`nacd compare`: who trains a model best with how many rows."""

    out: Path = Path("runs/compare")
    """Folder of the comparison; the same command again goes on where it stopped."""
    methods: tuple[str, ...] = ("zero-shot", "random", "less", "seeds", "text", "full")
    """Rows of the table: `zero-shot`, `full`, a method of `nacd select`; of a distillation `seeds`,
    `seeds-shuffled`, `random-prompts`, `other-prompts`, `soft`, `text`, `text-shuffled`."""
    budgets: tuple[str, ...] = ("5%",)
    """Sizes of the small sets: rows (`112`), percentages (`5%`) or tokens (`20000t`)."""
    target_models: tuple[str, ...] = ()
    """Further models to train, beside --model: hub ids, folders or GGUF files."""
    seeds: int = 5
    """Trainings (seeds; draws for `random`) behind each row; a multiple of the distillations."""
    distillations: int = 1
    """Distillations, each from seed rows of its own; the trainings take them in turn."""
    seeds_by: str = "random"
    """How the seed rows of a distillation are chosen."""
    runs: tuple[str, ...] = ()
    """Run folders of `nacd distill` to take seeds and text from, instead of distilling anew."""
    accuracy: tuple[str, ...] = ()
    """Rows whose trained models also answer the report questions (lm-eval, multiple choice)."""
    elsewhere: str = ""
    """Other data (file or hub id): its response NLL shows what a training harms; empty: none."""
    tune: bool = False
    """Find learning rate and epochs for each model and budget, on validation rows, by whole
    trainings on random rows; off: train by those given."""
    tune_rates: tuple[float, ...] = ()
    """Old, gone in the next release: learning rates alone to try; see --tune."""
    full_epochs: float = 1.0
    """Epochs of the row `full` (also shown at equal steps)."""
    full_seeds: int = 1
    """Trainings behind the row `full`."""
    seed: int = 0
    """Seed of everything that is drawn."""
    track: str = ""
    """Send the distillations' metrics to a tracker too, as `nacd distill --track` does."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    outer: OuterLoopConfig = field(default_factory=OuterLoopConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            UserError: an unknown row, or a flag's value out of range; it is named.
        """
        for flag, names in (("--methods", self.methods), ("--accuracy", self.accuracy)):
            unknown = [name for name in names if name not in ROWS]
            if unknown:
                raise UserError(
                    f"{flag} {' '.join(unknown)}: unknown; the rows are {', '.join(ROWS)}."
                )
        if not self.methods:
            raise UserError("--methods: name at least one row.")
        if not self.budgets:
            raise UserError("--budgets: name at least one budget.")
        for flag, names in (
            ("--methods", self.methods),
            ("--budgets", self.budgets),
            ("--runs", self.runs),
            ("--target-models", (self.model.model, *self.target_models)),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                also = " (--model is a target itself)" if flag == "--target-models" else ""
                raise UserError(f"{flag}: {twice[0]} is named twice{also}; name it once.")
        for budget in self.budgets:
            parse_budget(budget)
        for flag, value in (
            ("--seeds", self.seeds),
            ("--full-seeds", self.full_seeds),
            ("--distillations", self.distillations),
        ):
            if value < 1:
                raise UserError(f"{flag} {value}: must be at least 1.")
        draws = len(self.runs) or self.distillations
        if self.seeds % draws and any(name in DISTILLED for name in self.methods):
            less, more = self.seeds // draws * draws, (self.seeds // draws + 1) * draws
            raise UserError(
                f"--seeds {self.seeds} with {draws} distillations: each is trained on equally "
                f"often; give --seeds {f'{less} or {more}' if less else more}."
            )
        for name in self.methods:
            if name in METHODS:
                check_method(name, self.selection, "--methods")
        check_method(self.seeds_by, self.selection, "--seeds-by")
        shared = {
            "tune": self.tune,
            "tune_rates": self.tune_rates,
            "full_epochs": self.full_epochs,
        }
        replace(self.distillation(self.budgets[0], 0), **shared).check()

    def distillation(self, budget: str, number: int, recipe: Recipe | None = None) -> DistillConfig:
        """The distillation behind NACD's own rows, with a recipe already tuned."""
        return DistillConfig(
            out=self.out / "distilled" / f"{budget}-{number}",
            budget=budget,
            seed=self.seed + number,
            seeds_by=self.seeds_by,
            compare=(),
            track=self.track,
            model=self.model,
            data=self.data,
            recipe=recipe or self.recipe,
            expert=self.expert,
            outer=self.outer,
            selection=self.selection,
        )
