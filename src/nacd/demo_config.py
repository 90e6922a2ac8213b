"""The demo as flags of `nacd distill`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.models import ModelConfig
from nacd.recipe import Recipe


@dataclass(frozen=True)
class DemoConfig:
    """A small distillation of the MMLU exemplars that lm-eval ships."""

    out: Path = Path("runs/demo")
    """Run folder; the same command again goes on where it stopped."""
    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    outer_steps: int = 6
    """Outer steps."""
    seed: int = 0
    """Seed of everything that is drawn."""


def demo_config(config: DemoConfig) -> DistillConfig:
    """The demo as the flags of `nacd distill`."""
    return DistillConfig(
        out=config.out,
        budget="16",
        seed=config.seed,
        draws=2,
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
            check_seeds=1,
            engine="one-sided",
        ),
    )
