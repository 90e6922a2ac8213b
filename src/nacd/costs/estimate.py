"""What a planned run takes in time, memory and disk, from one measured inner step of its engine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.costs.costs import Forecast, peak, snapshot_bytes, sweep_bytes
from nacd.data.batches import Batch
from nacd.meta import EngineName, make_engine
from nacd.meta.diagnosis import warm_trial
from nacd.model.lora import LoraModel
from nacd.terminal.units import byte_size, duration


@dataclass(frozen=True)
class Estimate:
    """Memory, time and disk of a planned run, from a measured step."""

    peak_bytes: int | None
    """Peak memory of the process (CUDA: on the device); None where it cannot be measured."""
    seconds: float
    """The outer loop."""
    disk_bytes: int
    """What the outer loop's state and the experts' snapshots take."""
    outer_seconds: float
    """One outer step."""
    inner_steps: int
    """Inner steps of one outer step, all segments together."""
    engine: EngineName
    micro_tokens: int
    """Most tokens that went through the model at once."""
    forecast: Forecast | None = None
    """The whole of `nacd distill`, stage by stage."""

    def describe(self) -> str:
        """A few lines, at 80 columns."""
        peak = "not measured" if self.peak_bytes is None else byte_size(self.peak_bytes)
        whole = [] if self.forecast is None else ["", self.forecast.describe()]
        return "\n".join(
            [
                f"time: about {duration(self.seconds)} for the outer steps, --engine {self.engine}",
                f"      {duration(self.outer_seconds)} an outer step of {self.inner_steps} "
                "inner steps",
                f"memory: about {peak} at the peak, --micro-tokens {self.micro_tokens}",
                f"disk: about {byte_size(self.disk_bytes)}",
                *whole,
            ]
        )


def estimate(
    model: LoraModel,
    recipe: Recipe,
    batch: Batch,
    vectors: Tensor,
    *,
    rows: int,
    outer_steps: int,
    engine: EngineName = "first-order",
    eps: float = 1e-2,
    window: int = 0,
    segments: int = 1,
    student_steps: int = 0,
    target_batches: int = 0,
    snapshots: int = 0,
) -> Estimate:
    """What a planned run takes, from one measured inner step of its own engine.

    Args:
        model: the model; its LoRA is overwritten.
        recipe: the inner loop's.
        batch: a real batch of the recipe's size, the longest for a safe figure.
        vectors: all learnable embeddings, (Q, d).
        rows: rows of the distilled set.
        outer_steps: outer steps.
        engine: the engine of the run.
        eps: its step length.
        window: inner steps differentiated through; 0: the whole recipe.
        segments: inner loops in an outer step.
        student_steps: ordinary steps of all students that late windows start from.
        target_batches: batches of target rows that the objective reads; 0 for `trajectory`.
        snapshots: of all experts, or students of the pool, that are kept.
    """
    total = recipe.total_steps(rows)
    inner = min(window or total, total)
    trial = warm_trial(model, recipe, [batch, batch], vectors, thorough=False)
    taken: list[float] = []

    def work() -> None:
        taken.append(trial.gradient(make_engine(engine, eps))[1])

    most = peak(model, work)
    entry = trial.start.theta.element_size()
    state = 1 + len(trial.start.state)
    if most is not None:
        learnable = int((batch.slots >= 0).sum()) * vectors.shape[1] * entry
        own = learnable if engine == "one-sided" else 0.0
        most += round(sweep_bytes(model, inner, state, own))
    outer = segments * (inner * taken[0] + target_batches * trial.step_seconds)
    disk = 3 * vectors.numel() * vectors.element_size()
    disk += snapshots * snapshot_bytes(model, state)
    inner *= segments
    seconds = outer_steps * outer + student_steps * trial.step_seconds
    return Estimate(most, seconds, disk, outer, inner, engine, model.micro)
