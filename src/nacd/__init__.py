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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nacd.commands.check import Checked, check
    from nacd.commands.compare import Compared, compare
    from nacd.commands.distill import Distilled, distill
    from nacd.commands.doctor import doctor, record_experts
    from nacd.commands.select import Selected, select
    from nacd.commands.target import evaluate, fine_tune
    from nacd.config import (
        DataConfig,
        DistillConfig,
        ExpertConfig,
        ModelConfig,
        OuterLoopConfig,
        SelectionConfig,
    )
    from nacd.config.check import CheckConfig
    from nacd.config.commands import (
        EvaluateConfig,
        PushConfig,
        ReportConfig,
        SelectConfig,
        TrainConfig,
    )
    from nacd.config.compare import CompareConfig
    from nacd.config.recipe import Recipe
    from nacd.errors import UserError
    from nacd.export.push import push
    from nacd.report.page import write_report

_HOMES = {
    "checking.check": ("Checked", "check"),
    "checking.config": ("CheckConfig",),
    "command_configs": (
        "EvaluateConfig",
        "PushConfig",
        "ReportConfig",
        "SelectConfig",
        "TrainConfig",
    ),
    "commands": ("doctor", "record_experts"),
    "comparison.compare": ("Compared", "compare"),
    "comparison.config": ("CompareConfig",),
    "distilling": ("Distilled", "distill"),
    "config": (
        "DataConfig",
        "DistillConfig",
        "ExpertConfig",
        "ModelConfig",
        "OuterLoopConfig",
        "SelectionConfig",
    ),
    "errors": ("UserError",),
    "export.push": ("push",),
    "recipe": ("Recipe",),
    "report.page": ("write_report",),
    "selecting": ("Selected", "select"),
    "target": ("evaluate", "fine_tune"),
}

__all__ = [
    "CheckConfig",
    "Checked",
    "CompareConfig",
    "Compared",
    "DataConfig",
    "DistillConfig",
    "Distilled",
    "EvaluateConfig",
    "ExpertConfig",
    "ModelConfig",
    "OuterLoopConfig",
    "PushConfig",
    "Recipe",
    "ReportConfig",
    "SelectConfig",
    "Selected",
    "SelectionConfig",
    "TrainConfig",
    "UserError",
    "check",
    "compare",
    "distill",
    "doctor",
    "evaluate",
    "fine_tune",
    "push",
    "record_experts",
    "select",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for, so that `import nacd` stays quick."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"nacd.{home}"), name)
    raise AttributeError(f"module 'nacd' has no attribute {name!r}")
