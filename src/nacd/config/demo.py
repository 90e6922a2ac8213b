"""The demo as settings of `nacd check` and `nacd distill`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nacd.config.check import CheckConfig
from nacd.config.distill import DistillConfig
from nacd.config.model import ModelConfig
from nacd.config.outer import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.config.rows import DataConfig
from nacd.config.settings import Folder, convert

EXEMPLARS = "MMLU exemplars (lm-eval)"
"""What the demo's runs call their data."""

RECIPE = Recipe(learning_rate=1e-3, epochs=4.0, shuffle=True)
"""Found beforehand, so that the minutes go into trainings; other checks tune by themselves."""


@dataclass(frozen=True)
class DemoConfig:
    """A check of the MMLU exemplars that lm-eval ships, and a small distillation of them."""

    out: Folder = Folder(Path("runs/demo"))
    """Folder of the two runs, `check/` and `distill/`; the same command again goes on."""
    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    budget: str = "8"
    """Rows to come down to."""
    minutes: float = 5.0
    """Time for the check; the distillation takes about as long on two cores."""
    outer_steps: int = 6
    """Outer steps of the distillation."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        """Keep a path, however it was given."""
        convert(self, out=Path)


def _data() -> DataConfig:
    return DataConfig(data=EXEMPLARS, template="qa", max_tokens=64, target_rows=32)


def check_config(config: DemoConfig) -> CheckConfig:
    """The demo's check."""
    return CheckConfig(
        out=config.out / "check",
        budget=config.budget,
        minutes=config.minutes,
        tune=False,
        recipe=RECIPE,
        methods=("rds+",),
        seed=config.seed,
        model=ModelConfig(model=config.model),
        data=_data(),
    )


def distill_config(config: DemoConfig, recipe: Recipe) -> DistillConfig:
    """The demo's distillation.

    Args:
        config: the demo's settings.
        recipe: that of the check.
    """
    return DistillConfig(
        out=config.out / "distill",
        budget=config.budget,
        seed=config.seed,
        compare=("zero-shot", "random", "seeds", "text"),
        trainings=3,
        model=ModelConfig(model=config.model),
        data=_data(),
        recipe=recipe,
        outer=OuterLoopConfig(
            objective="target-loss",
            outer_steps=config.outer_steps,
            check_every=max(1, config.outer_steps // 2),
            check_trainings=1,
            agreement=0,
            engine="one-sided",
        ),
    )
