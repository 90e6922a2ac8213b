"""NACD: distil an instruction-tuning set to a few per cent of its rows, as text (arXiv 2504.09818).

import nacd

result = nacd.distill(nacd.DistillConfig(
    model=nacd.ModelConfig(model="smollm2"),
    data=nacd.DataConfig(data="mine.jsonl"),
    budget="5%",
    out="runs/mine",
))
print(result.verdict, result.dataset)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nacd.commands import (
        Distilled,
        EvaluateConfig,
        TrainConfig,
        distill,
        experts,
    )
    from nacd.commands import run_evaluate as evaluate
    from nacd.commands import run_train as train
    from nacd.config import DataConfig, DistillConfig, ExpertConfig, OuterLoopConfig
    from nacd.errors import UserError
    from nacd.models import ModelConfig
    from nacd.recipe import Recipe

_HOMES = {
    "Distilled": "commands",
    "EvaluateConfig": "commands",
    "TrainConfig": "commands",
    "distill": "commands",
    "experts": "commands",
    "evaluate": "commands:run_evaluate",
    "train": "commands:run_train",
    "DataConfig": "config",
    "DistillConfig": "config",
    "ExpertConfig": "config",
    "OuterLoopConfig": "config",
    "UserError": "errors",
    "ModelConfig": "models",
    "Recipe": "recipe",
}

__all__ = [
    "DataConfig",
    "DistillConfig",
    "Distilled",
    "EvaluateConfig",
    "ExpertConfig",
    "ModelConfig",
    "OuterLoopConfig",
    "Recipe",
    "TrainConfig",
    "UserError",
    "distill",
    "evaluate",
    "experts",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load the public names when they are asked for: `import nacd` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nacd' has no attribute {name!r}")
    from importlib import import_module

    module, _, other = _HOMES[name].partition(":")
    return getattr(import_module(f"nacd.{module}"), other or name)
