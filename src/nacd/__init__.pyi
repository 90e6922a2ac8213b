from .checking.outcome import Checked
from .commands.check import check
from .commands.compare import Compared, compare
from .commands.distill import Distilled, distill
from .commands.doctor import doctor, record_experts
from .commands.label import Labelled, label
from .commands.select import Selected, select
from .commands.target import evaluate, fine_tune
from .config import (
    DataConfig,
    DistillConfig,
    ExpertConfig,
    ModelConfig,
    OuterLoopConfig,
    SelectionConfig,
)
from .config.check import CheckConfig
from .config.commands import (
    EvaluateConfig,
    LabelConfig,
    PlanConfig,
    PushConfig,
    ReportConfig,
    SelectConfig,
    TrainConfig,
)
from .config.compare import CompareConfig
from .config.recipe import Recipe
from .costs.planning import plan
from .errors import UserError
from .export.push import push
from .report.page import write_report

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
    "LabelConfig",
    "Labelled",
    "ModelConfig",
    "OuterLoopConfig",
    "PlanConfig",
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
    "label",
    "plan",
    "push",
    "record_experts",
    "select",
    "write_report",
]
