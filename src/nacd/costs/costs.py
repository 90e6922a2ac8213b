"""What a command will take, told before its first long step: time, memory and disk by stage.

Time is work times speed. Work is counted in tokens of ordinary training steps (`Work`); the speed
of the model on this machine, and the memory of a step, are measured on real batches (`measure`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nacd.config import ExpertConfig, OuterLoopConfig, SelectionConfig
from nacd.config.methods import METHODS
from nacd.config.recipe import Recipe
from nacd.data import Encoded, collate, training_order
from nacd.data.stored import lengths
from nacd.distillation.pool import students, window_of
from nacd.meta import PASSES, likely
from nacd.model.lora import LoraModel
from nacd.model.per_row import ROOM
from nacd.model.prepare import Prepared
from nacd.model.products import count
from nacd.selection.judges import JUDGES
from nacd.store.memory import forget_peak, peak_resident
from nacd.terminal.units import byte_size, duration
from nacd.training.tuning import FORWARD, SEARCHED
from nacd.training.update import initial_state, step

SHORT = 512
"""Tokens of a measured batch on a CPU, at least a row: time is proportional to them there."""
MEASURED = 2
"""Steps that are measured, after one that warms up."""
PASSES_A_ROW = 1300
"""What a row's own gradient and its projection take beside its step: that many tokens' worth for
every parameter of LoRA's, over the model's parameters (measured; they go over LoRA's gradient)."""
MOMENTS = 3
"""Tensors of the size of LoRA in a state of AdamW: theta, m, v."""
LONG = 3600.0
"""Seconds above which a terminal is asked."""


@dataclass(frozen=True)
class Speed:
    """One model on this machine."""

    step: float
    """Seconds of an ordinary training step per token of its batch."""
    forward: float = FORWARD
    """Time of a pass without gradients over the same tokens, in such steps."""
    step_bytes: int | None = None
    """Peak memory during such a step; None where it cannot be measured."""
    forward_bytes: int | None = None
    """The same without gradients."""


@dataclass(frozen=True)
class Stage:
    """A part of a run."""

    name: str
    seconds: float
    memory: int | None = None
    """Bytes at the peak; None: not known."""
    disk: float = 0
    """Bytes that it leaves."""


@dataclass(frozen=True)
class Forecast:
    """What is still to be done of a run."""

    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        """All of it."""
        return math.fsum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> int | None:
        """Bytes at the highest peak; None: not known."""
        return max((s.memory for s in self.stages if s.memory is not None), default=None)

    @property
    def disk(self) -> float:
        """Bytes that are left."""
        return math.fsum(stage.disk for stage in self.stages)

    def describe(self) -> str:
        """A line a stage and one of the whole, at 80 columns."""
        head = f"{'forecast, from a measured step':<42}{'time':>10}{'memory':>11}{'disk':>11}"

        def taken(seconds: float) -> str:
            return duration(seconds) if seconds >= 1 else "< 1 s"

        return "\n".join([head, *self.lines(taken)])

    def lines(self, taken: Callable[[float], str]) -> list[str]:
        """The lines, without a head; `taken` writes seconds."""
        lines = []
        for stage in (*self.stages, Stage("in all", self.seconds, self.memory, self.disk)):
            memory = "" if stage.memory is None else byte_size(stage.memory)
            disk = byte_size(stage.disk) if stage.disk >= 1 else ""
            spent = taken(stage.seconds)
            lines.append(f"  {stage.name:<40}{spent:>10}{memory:>11}{disk:>11}".rstrip())
        return lines


# --- speed ------------------------------------------------------------------------------------


def peak(model: LoraModel, work: Callable[[], object]) -> int | None:
    """Peak memory while `work` runs, in bytes; None where the system does not tell."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        work()
        return torch.cuda.max_memory_allocated(model.device)
    known = model.device.type == "cpu" and forget_peak()
    work()
    return peak_resident() if known else None


def measure(model: LoraModel, rows: Sequence[Encoded], recipe: Recipe) -> Speed:
    """Time an ordinary training step on real batches, and a pass without gradients.

    Args:
        model: its LoRA is overwritten.
        rows: what is trained on, at least one.
        recipe: of the training.
    """
    order = training_order(len(rows), recipe.batch_size, 1 + MEASURED, 0)
    most = SHORT if model.device.type == "cpu" else math.inf
    batches = []
    for where in order:
        kept = [rows[i] for i in where]
        while len(kept) > 1 and sum(map(len, kept)) > most:
            kept.pop()
        batches.append(collate(kept, model.tokenizer.pad_token_id))
    theta = model.fresh_theta(0)
    state = initial_state(recipe, theta)
    rate = torch.tensor(recipe.learning_rate, device=model.device)

    def one(k: int) -> None:
        loss, gradient, _ = model.value_and_grad(theta, batches[k])
        moved: Tensor = step(recipe, theta, state, gradient, rate, k)[0]
        float(loss + moved.sum())  # waits for the device

    def timed(run: Callable[[int], object]) -> tuple[float, int | None]:
        began = time.perf_counter()
        most = peak(model, lambda: [run(k) for k in range(1, len(batches))])
        tokens = sum(batch.tokens for batch in batches[1:])
        return (time.perf_counter() - began) / tokens, most

    one(0)
    seconds, step_bytes = timed(one)
    forward, forward_bytes = timed(lambda k: float(model.row_nll(theta, batches[k])[0].sum()))
    return Speed(seconds, forward / seconds, step_bytes, forward_bytes)


# --- work -------------------------------------------------------------------------------------


def tokens_of(rows: Sequence[Encoded]) -> int:
    """Tokens of rows."""
    return int(lengths(rows).sum(dtype=np.int64))


class Work:
    """What the stages of a run take, in tokens of ordinary training steps.

    Args:
        prepared: the model and the rows.
        recipe: of the trainings on the budget's rows.
        rows: how many those are.
        forward: time of a pass without gradients, in ordinary steps.
        row_tokens: mean tokens of those rows; None: those of all rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        recipe: Recipe,
        rows: int,
        forward: float = FORWARD,
        row_tokens: float | None = None,
    ):
        self.prepared, self.recipe, self.rows, self.forward = prepared, recipe, rows, forward
        self.tokens = tokens_of(prepared.train.rows)
        self.targets = tokens_of(prepared.target.rows)
        self.mean = self.tokens / len(prepared.train)
        self.steps = recipe.total_steps(rows)
        self.one = self.training(recipe, rows)
        if row_tokens is not None:
            self.one *= row_tokens / self.mean
        """One training on the budget's rows."""
        self.check = self.one + forward * tokens_of(prepared.development.rows)
        """One training, and its loss on the validation rows."""

    def training(self, recipe: Recipe, rows: int, steps: int | None = None) -> float:
        """One training on `rows` rows of mean length; the last batch of an epoch may be short."""
        steps = recipe.total_steps(rows) if steps is None else steps
        an_epoch = math.ceil(rows / recipe.batch_size)
        return self.mean * rows * steps / an_epoch

    def choosing(self, method: str, selection: SelectionConfig) -> float:
        """By a method of `nacd select`, the judge named; 0 where it reads no model."""
        if method == "kcenter":
            return self.forward * self.tokens
        if method == "rds+":
            return self.forward * (self.tokens + self.targets)
        if method == "less":  # warm-up and features, at the end of every epoch of it
            rows = len(self.prepared.train) + len(self.prepared.target)
            features = self.tokens + self.targets + rows * self._a_row()
            return selection.warmup_epochs * (selection.warmup_share * self.tokens + features)
        if method == "best-of":
            judges = min(JUDGES, len(self.prepared.train) // 4) * self.mean
            if selection.judge == "target":
                judges = self.targets
            return selection.tries * (self.one + self.forward * judges)
        if method == "trajectory":
            groups = math.ceil(len(self.prepared.train) / self.rows)
            loop = PASSES["one-sided"] * self.one + self.targets
            return selection.weight_passes * groups * loop
        return 0.0

    def _a_row(self) -> float:
        """What a row's own gradient takes beside its step."""
        model = self.prepared.model
        return PASSES_A_ROW * model.size / count(model.hf.parameters())

    def learning(self, outer: OuterLoopConfig, steps: int | None = None) -> float:
        """The outer loop of one distillation (its objective named), without its checks.

        Args:
            outer: its settings.
            steps: outer steps, if not those that are set.
        """
        steps = outer.outer_steps if steps is None else steps
        ahead, window = window_of(outer, self.recipe, self.rows)
        # steps that lead to a window, on average; from a snapshot of an expert's there are none
        led = not ahead and outer.objective != "trajectory"
        before = (self.steps - window) / 2 if led else 0.0
        step = self.one / self.steps
        engine = likely(outer.engine, self.prepared.model.config.low)
        inner = (PASSES[engine] * window + before) * step
        others = len(self.prepared.train) - self.rows
        judged = {
            "target-loss": self.targets,
            "train-loss": min(outer.objective_rows, others) * self.mean,
            "trajectory": 0.0,
        }[outer.objective]
        loops = steps * outer.segments + (outer.agreement if steps else 0)
        # a student is trained when an inner loop first asks for it
        asked = min(students(outer, steps), steps * outer.segments)
        return loops * (inner + judged) + asked * ahead * step

    def checking(self, outer: OuterLoopConfig, checks: int | None = None) -> float:
        """All checks on the validation rows of one distillation, of vectors and of text.

        Args:
            outer: its settings.
            checks: how many, if not as many as are set.
        """
        if checks is None:
            checks = 1 + math.ceil(outer.outer_steps / outer.check_every)
        return checks * 2 * outer.check_trainings * self.check

    def recording(self, expert: ExpertConfig, outer: OuterLoopConfig) -> float:
        """The experts of one distillation."""
        if outer.objective != "trajectory" or expert.expert_from:
            return 0.0
        recipe = expert.recipe(self.recipe)
        steps = recipe.total_steps(len(self.prepared.train))
        validation = tokens_of(self.prepared.development.rows)
        held_out = self.forward * validation / expert.snapshot_every
        return expert.experts * steps * (recipe.batch_size * self.mean + held_out)


# --- memory and disk --------------------------------------------------------------------------


def snapshot_bytes(model: LoraModel, tensors: int = MOMENTS) -> int:
    """Of tensors of the size of LoRA."""
    return tensors * model.size * model.zero_theta().element_size()


def sweep_bytes(
    model: LoraModel, inner: int, tensors: int = MOMENTS, vectors: float = 0.0
) -> float:
    """What a sweep over `inner` steps keeps beside one step's graph.

    Args:
        model: the model.
        inner: its steps, of each of which the gradient is kept.
        tensors: of the state, which is kept at log2 of them.
        vectors: bytes of a batch's vectors, of which an engine keeps the gradient too.
    """
    state = tensors * math.ceil(math.log2(max(1, inner)))
    return snapshot_bytes(model, inner - 1 + state) + (inner - 1) * vectors


def vectors_kept(engine: str, tokens: float, width: int) -> float:
    """Bytes of a batch's vectors where the engine keeps their gradient at every step; else 0."""
    return 4.0 * tokens * width if engine == "one-sided" else 0.0


def tuning_stage(
    work: Work, speed: Speed, tune: bool, rates: Sequence[float], name: str = ""
) -> Stage:
    """The search of a recipe, as --tune or --tune-rates ask for it; without them, nothing."""
    searched = SEARCHED if tune else len(rates)
    name = name or f"tuning the recipe, about {searched} trainings"
    return Stage(name, speed.step * searched * work.check, speed.step_bytes)


def table_trainings(
    work: Work,
    methods: Sequence[str],
    trainings: int,
    full_epochs: float,
    full_trainings: int = 1,
) -> list[tuple[str, int, float]]:
    """The rows of a results table: name, how many trainings, and the work of one of them."""
    of, found = len(work.prepared.train), []
    for method in methods:
        if method == "zero-shot":
            found.append((method, 1, 0.0))
        elif method == "full":
            full = replace(work.recipe, steps=0, epochs=full_epochs)
            equal = work.training(work.recipe, of, work.steps)
            found.append(("full-equal-steps", trainings, equal))
            found.append((method, full_trainings, work.training(full, of)))
        else:
            found.append((method, trainings, work.one))
    return found


def choosing_stage(
    work: Work, speed: Speed, method: str, selection: SelectionConfig, name: str = ""
) -> Stage:
    """The choice of the budget's rows by a method, its judge named."""
    model, rows = work.prepared.model, len(work.prepared.train)
    seconds = speed.step * work.choosing(method, selection)
    memory, disk = speed.step_bytes, 0.0
    if METHODS[method].anytime:  # a search that takes the minutes it is given
        seconds = 60 * selection.minutes
    if method in ("kcenter", "rds+"):
        memory, disk = speed.forward_bytes, 4.0 * rows * model.width
    elif method == "less":
        features = 2.0 * (rows + len(work.prepared.target)) * selection.projection_dim
        disk = selection.warmup_epochs * (snapshot_bytes(model) + features)
        together = max(1, min(work.recipe.batch_size, ROOM // model.size))
        memory = _more(memory, snapshot_bytes(model, 2 * together + MOMENTS))
    elif method == "trajectory":
        disk, memory = 16.0 * rows, _more(memory, sweep_bytes(model, work.steps))
    elif not seconds:
        memory = None
    return Stage(name or f"choosing by {method}", seconds, memory, disk)


def _more(known: int | None, more: float) -> int | None:
    return None if known is None else known + round(more)


def without_nothing(stages: Sequence[Stage]) -> Forecast:
    """A forecast of the stages that take anything."""
    return Forecast(tuple(stage for stage in stages if stage.seconds > 0 or stage.disk >= 1))


def shortened(stage: Stage, share: float) -> Stage:
    """What is left of a stage of which a share is done."""
    return replace(stage, seconds=stage.seconds * (1 - share), disk=stage.disk * (1 - share))
