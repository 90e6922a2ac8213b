"""What `nacd check` may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nacd.config.budget import BudgetText, HasBudget, budget_text
from nacd.config.distill import DistillConfig
from nacd.config.limits import LABEL_RATE, check_label_rate
from nacd.config.methods import check_method
from nacd.config.model import ModelConfig
from nacd.config.recipe import Recipe
from nacd.config.rows import DataConfig
from nacd.config.selection import SelectionConfig
from nacd.config.settings import Folder, convert
from nacd.errors import UserError

FREE = ("out", "minutes", "methods", "labels", "alike")
"""Keys that may differ when a check goes on: they add trainings, and change none."""


SWAPPING = 0.4
"""Share of the time that a search by swaps gets, once all that comes before it is done."""


@dataclass(frozen=True)
class CheckConfig(HasBudget):
    """`nacd check`: how many rows does this data set need, and does a choice beat random ones?"""

    out: Folder = Folder(Path("runs/check"))
    """Folder of the check; the same command again goes on where it stopped."""
    budget: BudgetText = BudgetText("5%")
    """Size of the small set: rows (`112`), a percentage (`5%`) or tokens (`20000t`)."""
    minutes: float = 10.0
    """Time for all of it, earlier calls included; more of it later adds trainings."""
    methods: tuple[str, ...] = ("rds+", "best-of", "swaps")
    """Choices held against random rows, as time allows: methods of `nacd select`."""
    labels: bool = True
    """Train on random rows with the soft labels of the model trained on all rows, too."""
    label_rate: float = LABEL_RATE
    """Learning rate of trainings on soft labels, in multiples of the recipe's."""
    alike: float = 0.05
    """A difference counts as none below this share of what training gains over no training."""
    tune: bool = True
    """Find learning rate and epochs first, on validation rows; off: train by those given."""
    seed: int = 0
    """Seed of everything that is drawn."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        """Keep a path and a text, however they were given."""
        convert(self, out=Path, budget=budget_text)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            UserError: an unknown method, or a flag's value out of range; it is named.
        """
        shared_names = ("budget", "seed", "model", "data", "recipe")
        shared = {name: getattr(self, name) for name in shared_names}
        DistillConfig(**shared).check()
        if not self.minutes > 0:
            raise UserError(f"--minutes {self.minutes:g}: must be above 0.")
        check_label_rate(self.label_rate)
        if not 0 < self.alike < 1:
            raise UserError(f"--alike {self.alike:g}: a share, must lie between 0 and 1.")
        if not self.recipe.shuffle:
            raise UserError(
                "--no-shuffle: nacd check trains in a new order every time, so that no figure is "
                "one order's; leave the flag out."
            )
        if self.recipe.steps:
            raise UserError(
                f"--steps {self.recipe.steps}: sets of several sizes are trained for epochs; give "
                "--epochs."
            )
        for method in self.methods:
            if method == "random":
                raise UserError(
                    "--methods random: random rows are what the others are held against, always; "
                    "leave it out."
                )
            check_method(method, SelectionConfig(), "--methods")
            if self.methods.count(method) > 1:
                raise UserError(f"--methods: {method} is named twice; name it once.")
        if (self.size.kind, self.size.number) == ("share", 100.0):
            raise UserError("--budget 100%: nothing is left out; give a smaller one, 5%, say.")
