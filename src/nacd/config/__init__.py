"""What a user may set, as frozen dataclasses: a field is a flag, its docstring the help.

No module here imports torch: `nacd --help` and a configuration in Python take no second.
"""

from nacd.config.budget import budget_rows
from nacd.config.distill import TABLE_ROWS, DistillConfig, check_tuning
from nacd.config.experts import ExpertConfig
from nacd.config.model import ModelConfig
from nacd.config.outer import OuterLoopConfig, decided
from nacd.config.recipe import Recipe
from nacd.config.rows import NONE, UNNAMED, Data, DataConfig, OtherData, ReadConfig
from nacd.config.selection import SelectionConfig, with_judge

__all__ = [
    "NONE",
    "TABLE_ROWS",
    "UNNAMED",
    "Data",
    "DataConfig",
    "DistillConfig",
    "ExpertConfig",
    "ModelConfig",
    "OtherData",
    "OuterLoopConfig",
    "ReadConfig",
    "Recipe",
    "SelectionConfig",
    "budget_rows",
    "check_tuning",
    "decided",
    "with_judge",
]
