"""Expert trajectories: trained and recorded here, or imported from a Trainer's checkpoints."""

from nacd.experts.import_peft import import_checkpoints, read_adapter
from nacd.experts.plan import ExpertPlan, plan_experts
from nacd.experts.record import record_expert
from nacd.experts.store import Expert, Snapshot, open_expert

__all__ = [
    "Expert",
    "ExpertPlan",
    "Snapshot",
    "import_checkpoints",
    "open_expert",
    "plan_experts",
    "read_adapter",
    "record_expert",
]
