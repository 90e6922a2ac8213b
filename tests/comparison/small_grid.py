"""A comparison that takes seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nacd.config import DataConfig, OuterLoopConfig, SelectionConfig
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.model.lora import ModelConfig


def grid(model: Path, data: Path, out: Path, **changes: object) -> CompareConfig:
    config = CompareConfig(
        out=out,
        methods=("zero-shot", "random", "seeds", "text", "full"),
        budgets=("4",),
        trainings=2,
        model=ModelConfig(model=str(model), lora_rank=2),
        data=DataConfig(data=str(data), target_rows=6),
        recipe=Recipe(batch_size=2, epochs=2, learning_rate=5e-3, shuffle=False),
        outer=OuterLoopConfig(outer_steps=2, check_every=1, engine="exact", step_size=1.0),
        selection=SelectionConfig(
            warmup_share=0.3, warmup_epochs=2, projection_dim=256, minutes=0.001
        ),
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]
