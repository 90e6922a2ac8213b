"""The demo as flags of `nacd distill`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nacd.config import DataConfig, DistillConfig, ModelConfig, OuterLoopConfig
from nacd.recipe import Recipe
from nacd.settings import Folder, convert


@dataclass(frozen=True)
class DemoConfig:
    """A small distillation of the MMLU exemplars that lm-eval ships."""

    out: Folder = Folder(Path("runs/demo"))
    """Run folder; the same command again goes on where it stopped."""
    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    outer_steps: int = 6
    """Outer steps."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        """Keep a path, however it was given."""
        convert(self, out=Path)


def demo_config(config: DemoConfig) -> DistillConfig:
    """The demo as the flags of `nacd distill`."""
    return DistillConfig(
        out=config.out,
        budget="16",
        seed=config.seed,
        trainings=2,
        full_epochs=1.0,
        model=ModelConfig(model=config.model),
        data=DataConfig(
            data="MMLU exemplars (lm-eval)", template="qa", max_tokens=64, target_rows=32
        ),
        recipe=Recipe(batch_size=8, epochs=3.0, learning_rate=2e-3, shuffle=False),
        outer=OuterLoopConfig(
            objective="target-loss",
            pool=0,
            outer_steps=config.outer_steps,
            check_every=max(1, config.outer_steps // 2),
            check_trainings=1,
            engine="one-sided",
        ),
    )
