"""The outer loop: learn P and log alpha so that training on P does what it should.

    L = mean over segments of L_objective(theta_N(P, alpha)) + beta * L_reg(P)

A segment is a start (theta, optimiser state, step count), an order of batches and an objective; the
gradient comes from one adjoint sweep a segment. A segment whose gradient is of no use is left out
of the mean, as if it had not been drawn. Adam (no decay) moves the projection's parameters
and log alpha. The loop knows no files: its whole state is a dictionary of tensors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nacd.data.rows import Rows
from nacd.distillation.neighbours import Metric, nearest, regulariser
from nacd.distillation.projection import Learner
from nacd.meta import Engine, MetaGradient, Objective, meta_gradient
from nacd.store.processes import spread
from nacd.training.inner import InnerLoop, Start

PATIENCE = 5
"""Outer steps in a row that may be skipped before learning stops."""
JUMP = 1.5
"""A meta-gradient longer than this many times the (lower) median so far is scaled down to that."""


class DivergedError(Exception):
    """The meta-gradients are of no use any more; the last good state is kept."""


@dataclass(frozen=True)
class Segment:
    """One inner loop to learn from."""

    loop: InnerLoop
    start: Start
    order: Sequence[Sequence[int]]
    """Row indices of each of the N batches."""
    objective: Objective


@dataclass(frozen=True)
class OuterConfig:
    """How the outer loop moves."""

    step_size: float
    """Adam's learning rate on the projection's parameters."""
    shared_scale: bool = False
    """Whether the projection's parameters share one second moment; see `Adam`."""
    rate_step_size: float = 0.0
    """Adam's learning rate on log alpha; 0 keeps alpha as it is."""
    beta: float = 0.0
    """Weight of the neighbour regulariser."""
    metric: Metric = "euclidean"
    """Distance of the neighbour regulariser."""
    trim: float = 0.0
    """Share of the inner steps' gradient cotangents, the largest, that are clamped."""
    explode: float = 1e4
    """Skip a segment whose cotangent grows by more than this factor from its end to its start."""


@dataclass
class Adam:
    """Adam (arXiv 1412.6980) on one tensor.

    With a second moment v of shape (), all entries share it: an entry moves by its own gradient's
    size, so that a few clear signals are followed and many faint ones, mostly noise, are not.
    """

    m: Tensor
    v: Tensor
    """As m, or ()."""
    count: int = 0

    def move(self, gradient: Tensor, step_size: float) -> Tensor:
        """The change that a gradient asks for."""
        self.count += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        square = gradient**2
        self.v = 0.99 * self.v + 0.01 * (square if self.v.shape == square.shape else square.mean())
        root = (self.v / (1 - 0.99**self.count)).sqrt() + 1e-12
        return -step_size * (self.m / (1 - 0.9**self.count)) / root


def rate_of(log_rate: Tensor) -> float:
    """The learning rate of a logarithm (), to nine digits: log and exp leave 1e-3 what it was."""
    return float(f"{math.exp(float(log_rate)):.9g}")


class OuterLoop:
    """The learned parameters and their optimiser."""

    def __init__(
        self,
        pseudo: Rows,
        projection: Learner,
        engine: Engine,
        config: OuterConfig,
        table: Tensor,
        allowed: Tensor,
        learning_rate: float,
        outer_steps: int,
    ):
        self.pseudo = pseudo
        self.projection = projection
        self.engine = engine
        self.config = config
        self.table = table
        self.allowed = allowed
        self.scale = float(
            torch.linalg.vector_norm(table, dim=1, dtype=torch.float32).square().mean()
        )
        self.outer_steps = outer_steps
        self.log_rate = torch.tensor(math.log(learning_rate), dtype=torch.float64)
        self.first_log_rate = float(self.log_rate)
        zeros = torch.zeros_like(projection.parameters)
        self.adam = Adam(zeros, zeros.sum() if config.shared_scale else zeros)
        self.rate_adam = Adam(torch.zeros(()), torch.zeros(()))
        self.done = 0
        self.skipped = 0
        self.norms: list[float] = []

    @property
    def progress(self) -> float:
        """Share of the outer steps done."""
        return self.done / max(1, self.outer_steps)

    @property
    def learning_rate(self) -> float:
        """The student's learning rate alpha."""
        return rate_of(self.log_rate)

    def vectors(self) -> Tensor:
        """P (Q, d) now."""
        return self.projection.vectors(self.progress)

    def differentiate(self, segment: Segment, vectors: Tensor) -> MetaGradient:
        """The meta-gradient of one inner loop at `vectors`, (Q, d)."""
        return meta_gradient(
            segment.loop,
            segment.start,
            [self.pseudo.batch(rows) for rows in segment.order],
            self.log_rate.to(vectors),
            vectors,
            segment.objective,
            self.engine,
            trim=self.config.trim,
        )

    def step(self, segments: Sequence[Segment | Callable[[], Segment]]) -> dict[str, float]:
        """One outer step; what it saw, of the segments that were kept (NaN where none was).

        Args:
            segments: inner loops, or what makes one; of several processes each makes its share.

        Raises:
            DivergedError: too many steps in a row were of no use, alpha has vanished, or what is
                learned is not finite.
        """
        vectors = self.vectors().detach()
        if not bool(torch.isfinite(vectors).all()):
            raise DivergedError(
                f"what is learned holds numbers that are not finite at outer step {self.done + 1}; "
                "lower --step-size, or give --dtype float32."
            )
        gradient = torch.zeros_like(vectors)
        rate_gradient = torch.zeros(())
        values, inner_ends, growths = [], [], []

        def differentiated(segment: Segment | Callable[[], Segment]) -> MetaGradient:
            return self.differentiate(segment() if callable(segment) else segment, vectors)

        for result in spread(segments, differentiated):
            growths.append(_growth(result))
            if not _finite(result) or growths[-1] > self.config.explode:
                continue
            values.append(result.value)
            inner_ends.append(result.losses[-1])
            gradient += result.vectors
            rate_gradient += result.log_rate.cpu()
        kept = len(values)
        gradient /= max(1, kept)
        rate_gradient /= max(1, kept)
        length = float(gradient.norm())
        metrics = {
            "objective": statistics.fmean(values) if kept else math.nan,
            "inner_loss_end": statistics.fmean(inner_ends) if kept else math.nan,
            "meta_gradient_norm": length if kept else math.nan,
            "cotangent_growth": max(growths),
            "learning_rate": self.learning_rate,
        }
        if kept < len(segments):
            metrics["segments_skipped"] = float(len(segments) - kept)
        if length == 0.0 or not math.isfinite(length):
            self.skipped += 1
            self.done += 1
            if self.skipped >= PATIENCE:
                raise DivergedError(_useless(metrics, kept > 0 and length == 0.0))
            return metrics | {"skipped": 1.0}
        self.skipped = 0
        self.norms.append(length)
        limit = JUMP * statistics.median_low(self.norms)
        if length > limit:
            gradient *= limit / length
            rate_gradient *= limit / length
        near = nearest(vectors, self.table, self.allowed, self.config.metric, self.pseudo.ids)
        rows = self.table[near]
        distance, slope = regulariser(
            vectors, rows.to(vectors.dtype), self.config.metric, self.scale
        )
        if self.config.beta:
            gradient = gradient + self.config.beta * slope
        pulled = self.projection.pull(gradient, self.progress)
        self.projection.parameters = self.projection.parameters + self.adam.move(
            pulled, self.config.step_size
        )
        if self.config.rate_step_size:
            self.log_rate = self.log_rate + self.rate_adam.move(
                rate_gradient, self.config.rate_step_size
            )
            drift = float(self.log_rate) - self.first_log_rate
            if not abs(drift) < math.log(1000):
                why = "wants no training at all" if drift < 0 else "knows no end of it"
                raise DivergedError(
                    f"the student's learning rate went to {self.learning_rate:.3g}: the objective "
                    f"{why}. Lower --rate-step-size, or choose other starting rows."
                )
        self.done += 1
        return metrics | {"neighbour_distance": distance}

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, as tensors."""
        return self.projection.kept() | {
            "parameters": self.projection.parameters,
            "adam_m": self.adam.m,
            "adam_v": self.adam.v,
            "rate_adam": torch.stack([self.rate_adam.m, self.rate_adam.v]),
            "log_rate": self.log_rate,
            "counts": torch.tensor(
                [self.done, self.adam.count, self.rate_adam.count, self.skipped]
            ),
            "norms": torch.tensor(self.norms, dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        device = self.projection.parameters.device
        self.projection.parameters = state["parameters"].to(device)
        self.projection.restore(state)
        done, count, rate_count, self.skipped = (int(x) for x in state["counts"])
        self.done = done
        self.adam = Adam(state["adam_m"].to(device), state["adam_v"].to(device), count)
        self.rate_adam = Adam(state["rate_adam"][0], state["rate_adam"][1], rate_count)
        self.log_rate = state["log_rate"]
        self.norms = state["norms"].tolist()


def _finite(result: MetaGradient) -> bool:
    tensors = (result.vectors, result.log_rate)
    return math.isfinite(result.value) and all(bool(torch.isfinite(t).all()) for t in tensors)


def _growth(result: MetaGradient) -> float:
    """Largest |lambda| of the sweep over |lambda_N|; infinite where one is not finite."""
    norms = result.cotangent_norms
    return max(norms) / (norms[0] + 1e-30) if all(map(math.isfinite, norms)) else math.inf


def _useless(metrics: Mapping[str, float], still: bool) -> str:
    """Why learning stops: what the last of the steps without a usable meta-gradient saw."""
    if still:
        return (
            f"in {PATIENCE} outer steps in a row the meta-gradient was exactly 0: what is trained "
            "did not depend on the learnable positions. Raise --window, or lower --warmup."
        )
    return (
        f"{PATIENCE} outer steps in a row gave no usable meta-gradient (cotangent growth "
        f"{metrics['cotangent_growth']:.3g}): the inner loop is too long or too stiff. Lower "
        "--learning-rate, or shorten --window."
    )
