"""What experts will cost, told before the first is trained.

The time is one real training step's, measured here, times the steps. With the cost c of experts
(and of distilling), a training on the full rows of time f and one on the distilled set of time d,
the cost has paid back after c / (f - d) trainings on the distilled set.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nacd.config.recipe import Recipe
from nacd.data import Encoded, collate, training_order
from nacd.errors import UserError
from nacd.experts.record import snapshot_steps
from nacd.meta import initial_state, step
from nacd.model.lora import LoraModel
from nacd.terminal.units import byte_size, duration

_HEADER = 512
"""Bytes of a safetensors header with room to spare."""


@dataclass(frozen=True)
class ExpertPlan:
    """Time, disk and pay-back of `count` experts."""

    count: int
    steps: int
    """Steps of one expert."""
    snapshots: int
    """Snapshots of one expert."""
    step_seconds: float
    """Measured time of one expert step."""
    size: int
    """Bytes on disk of all experts."""
    full_steps: int
    """Steps of one training on the full rows by the student's recipe."""
    student_steps: int
    """Steps of one training on the distilled set by the same."""
    student_step_seconds: float
    """Time of one such step: an expert's, by the ratio of the batch sizes."""
    distill_seconds: float = 0.0
    """Time of distilling, roughly; 0 where it is not known."""

    @property
    def seconds(self) -> float:
        """Time of all experts, evaluations left out."""
        return self.count * self.steps * self.step_seconds

    @property
    def pays_back(self) -> int | None:
        """Trainings on the distilled set after which the cost is saved; None: never."""
        saved = (self.full_steps - self.student_steps) * self.student_step_seconds
        return math.ceil((self.seconds + self.distill_seconds) / saved) if saved > 0 else None

    def describe(self) -> str:
        """Three lines of at most 80 columns."""
        experts = f"{self.count} expert" + "s" * (self.count != 1)
        cost = f"{experts} x {self.steps} steps x {self.step_seconds:.2g} s"
        what = "experts + distilling" if self.distill_seconds else "experts"
        lengths = f"({self.student_steps} steps, not {self.full_steps})"
        paid = f"never repaid {lengths}"
        if self.pays_back is not None:
            trainings = "training" + "s" * (self.pays_back != 1)
            paid = f"repaid after {self.pays_back} {trainings} {lengths}"
        return "\n".join(
            [
                f"time  {cost}: about {duration(self.seconds)}",
                f"disk  {experts} x {self.snapshots} snapshots: {byte_size(self.size)}",
                f"cost  {what}: {paid}",
            ]
        )


def plan_experts(
    model: LoraModel,
    rows: Sequence[Encoded],
    recipe: Recipe,
    every: int,
    count: int,
    student: Recipe,
    student_rows: int,
    distill_steps: float = 0.0,
) -> ExpertPlan:
    """Measure a training step and say what `count` experts will take.

    Args:
        model: its LoRA is overwritten.
        rows: the full rows.
        recipe: the experts'.
        every: steps from snapshot to snapshot.
        count: K, the number of experts.
        student: recipe of the trainings that distilling saves.
        student_rows: rows of the distilled set.
        distill_steps: what distilling takes, in training steps of that recipe; 0: not known.

    Raises:
        UserError: no row, or a value out of range.
    """
    recipe.check()
    if not rows:
        raise UserError("no rows to train an expert on: give --data a file with rows.")
    if count < 1:
        raise UserError(f"--experts {count}: must be at least 1.")
    total = recipe.total_steps(len(rows))
    snapshots = len(snapshot_steps(total, every))
    theta = model.fresh_theta(0)
    state = initial_state(recipe, theta)
    rate = theta.new_tensor(recipe.learning_rate)
    whole = [
        indices
        for indices in training_order(len(rows), recipe.batch_size, 4, 0)
        if len(indices) == min(recipe.batch_size, len(rows))
    ]
    times = []
    for k in range(3):  # the first warms up
        began = time.perf_counter()
        indices = whole[k % len(whole)]
        batch = collate([rows[i] for i in indices], model.tokenizer.pad_token_id)
        loss, gradient, _ = model.value_and_grad(theta, batch)
        theta, state = step(recipe, theta, state, gradient, rate, k)
        float(loss + theta.sum())  # waits for the device
        times.append(time.perf_counter() - began)
    tensors = 1 + len(state)
    size = snapshots * (tensors * theta.numel() * theta.element_size() + _HEADER)
    seconds = statistics.median(times[1:])
    batches = [min(r.batch_size, len(rows)) for r in (student, recipe)]
    student_seconds = seconds * batches[0] / batches[1]
    return ExpertPlan(
        count=count,
        steps=total,
        snapshots=snapshots,
        step_seconds=seconds,
        size=count * size,
        full_steps=student.total_steps(len(rows)),
        student_steps=student.total_steps(student_rows),
        student_step_seconds=student_seconds,
        distill_seconds=distill_steps * student_seconds,
    )
