"""What `nacd compare` may be told: methods x budgets x target models x trainings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nacd.config.budget import Budget, BudgetTexts, budget_text, parse_budget
from nacd.config.distill import DistillConfig
from nacd.config.limits import LABEL_RATE, check_counts, check_label_rate
from nacd.config.methods import METHODS, check_method
from nacd.config.recipe import Recipe
from nacd.config.settings import Folder, convert
from nacd.config.shared import TableConfig
from nacd.errors import UserError
from nacd.store.extras import require
from nacd.store.renamed import old_names_too

LEARNED = ("soft", "text", "text-last", "text-shuffled")
"""Rows of the table that a distillation learned."""
DISTILLED = ("seeds", "seeds-shuffled", "random-prompts", "other-prompts", *LEARNED)
"""Rows of the table that come from a distillation, or from its starting rows."""
ROWS = (
    "zero-shot",
    "random",
    "labelled",
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
    "trainings",
    "full_trainings",
    "accuracy",
    "elsewhere",
    "runs",
)
"""Keys that may differ when a comparison goes on: they add cells, and change none. (Other --runs
are refused once there are rows of a distillation.)"""


@old_names_too
@dataclass(frozen=True)
class CompareConfig(TableConfig):
    """`nacd compare`: who trains a model best with how many rows."""

    out: Folder = Folder(Path("runs/compare"))
    """Folder of the comparison; the same command again goes on where it stopped."""
    methods: tuple[str, ...] = ("zero-shot", "random", "less", "seeds", "text", "full")
    """Rows of the table: `zero-shot`, `full`, a method of `nacd select`; `labelled`, random rows
    with a teacher's soft labels; of a distillation `seeds`, `seeds-shuffled`, `random-prompts`,
    `other-prompts`, `soft`, `text`, `text-shuffled`, and `text-last`, the text of its last check on
    validation rows."""
    budgets: BudgetTexts = BudgetTexts(("5%",))
    """Sizes of the small sets: rows (`112`), percentages (`5%`) or tokens (`20000t`)."""
    target_models: tuple[str, ...] = ()
    """Further models to train, beside --model: hub ids, folders or GGUF files."""
    trainings: int = 5
    """Trainings behind each row, each of another seed (`random`: of other rows); a multiple of the
    distillations."""
    distillations: int = 1
    """Distillations, each from starting rows of its own; the trainings take them in turn."""
    runs: tuple[str, ...] = ()
    """Run folders of `nacd distill` to take the rows from, instead of distilling anew."""
    accuracy: tuple[str, ...] = ()
    """Rows whose trained models also answer the test questions (lm-eval, multiple choice)."""
    elsewhere: str = ""
    """Other data (file or hub id): its response NLL shows what a training harms; empty: none."""
    full_trainings: int = 1
    """Trainings behind the row `full`."""
    label_rate: float = LABEL_RATE
    """`labelled`: learning rate of students on soft labels, in multiples of the recipe's."""

    def __post_init__(self) -> None:
        """Keep a path and texts, however they were given."""
        convert(self, out=Path, budgets=lambda given: (*map(budget_text, given),))

    @property
    def sizes(self) -> tuple[Budget, ...]:
        """The budgets' values.

        Raises:
            UserError: one of them is none.
        """
        return tuple(map(parse_budget, self.budgets))

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
        if self.accuracy:
            require("lm_eval", f"--accuracy {' '.join(self.accuracy)}")
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
        _ = self.sizes
        check_counts(
            ("--trainings", self.trainings, 1),
            ("--full-trainings", self.full_trainings, 1),
            ("--distillations", self.distillations, 1),
        )
        check_label_rate(self.label_rate)
        draws = len(self.runs) or self.distillations
        if self.trainings % draws and any(name in DISTILLED for name in self.methods):
            less, more = self.trainings // draws * draws, (self.trainings // draws + 1) * draws
            raise UserError(
                f"--trainings {self.trainings} with {draws} distillations: each is trained on "
                f"equally often; give --trainings {f'{less} or {more}' if less else more}."
            )
        for name in self.methods:
            if name in METHODS:
                check_method(name, self.selection, "--methods")
        check_method(self.start_by, self.selection, "--start-by")
        shared = {
            "tune": self.tune,
            "tune_rates": self.tune_rates,
            "full_epochs": self.full_epochs,
        }
        replace(self.distillation(self.sizes[0], 0), **shared).check()

    def distillation(
        self, budget: Budget, number: int, recipe: Recipe | None = None
    ) -> DistillConfig:
        """The distillation behind NACD's own rows, with a recipe already tuned."""
        return DistillConfig(
            **self.shared()
            | {
                "out": self.out / "distilled" / f"{budget}-{number}",
                "seed": self.seed + number,
                "recipe": recipe or self.recipe,
                **_UNTUNED,
            },
            budget=str(budget),
            compare=(),
        )


_UNTUNED: dict[str, Any] = {"tune": False, "tune_rates": (), "full_epochs": 1.0}


def one_cell(config: DistillConfig, recipe: Recipe, methods: tuple[str, ...]) -> CompareConfig:
    """The results table of a distillation, as a comparison of one target model and budget.

    Args:
        config: of the distillation.
        recipe: of the table's trainings.
        methods: the table's rows.
    """
    return CompareConfig(
        **config.shared() | _UNTUNED | {"recipe": recipe, "full_epochs": config.full_epochs},
        methods=methods,
        budgets=(config.budget,),
        trainings=config.trainings,
    )
