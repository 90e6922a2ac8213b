"""The forecast of a command, stage by stage; what its run folder holds already takes nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nacd.config import DistillConfig, with_judge
from nacd.config.recipe import Recipe
from nacd.costs.costs import (
    LONG,
    MOMENTS,
    Forecast,
    Speed,
    Stage,
    Work,
    choosing_stage,
    measure,
    shortened,
    snapshot_bytes,
    sweep_bytes,
    table_trainings,
    tokens_of,
    tuning_stage,
    vectors_kept,
    without_nothing,
)
from nacd.costs.done import Done
from nacd.data import Encoded
from nacd.distillation.learn import draw
from nacd.distillation.pool import window_of
from nacd.errors import UserError
from nacd.meta import likely
from nacd.model.lora import LoraModel
from nacd.model.prepare import Prepared
from nacd.terminal.progress import Progress
from nacd.terminal.units import duration

CHECK = "checking the meta-gradient"
CHECKING = 10
"""Steps that the short check of the meta-gradient is worth, on batches of four rows."""
CHECKING_LOW = 28
"""The same in a 16-bit format: two double backwards in it, and two in float32."""


def announce(found: Forecast, progress: Progress) -> None:
    """Say what a run takes, and ask on a terminal whether to begin where that is long.

    Raises:
        UserError: the answer is no.
    """
    if not found.stages:
        return
    for line in found.describe().splitlines():
        progress.say(line)
    go_ahead(found.seconds, progress)


def go_ahead(seconds: float, progress: Progress) -> float:
    """Begin a run of so many seconds; a long one on a terminal not before it is said to.

    Returns:
        Seconds that the answer took.

    Raises:
        UserError: the answer is no.
    """
    began = time.perf_counter()
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if seconds > LONG and progress.asks and terminal:
        progress.say(f"This takes about {duration(seconds)}. Begin? [y/N]  (--yes: without asking)")
        if input().strip().lower() not in ("y", "yes"):
            raise UserError(
                "not begun; what was done before is kept. Lower what takes the time (a smaller "
                "--budget, say), or give --yes to begin unasked."
            )
    progress.expect(seconds)
    return time.perf_counter() - began


def of_training(
    model: LoraModel, rows: Sequence[Encoded], recipe: Recipe, speed: Speed
) -> Forecast:
    """`nacd train` on all the rows."""
    an_epoch = math.ceil(len(rows) / recipe.batch_size)
    work = tokens_of(rows) * recipe.total_steps(len(rows)) / an_epoch
    name = f"training, {recipe.total_steps(len(rows))} steps"
    return Forecast((Stage(name, speed.step * work, speed.step_bytes, snapshot_bytes(model, 1)),))


def distillation(
    config: DistillConfig,
    prepared: Prepared,
    speed: Speed,
    folder: Path | None = None,
    *,
    outer: tuple[float, int | None] | None = None,
) -> Forecast:
    """`nacd distill`, its objective named.

    Args:
        config: the run's.
        prepared: its model and rows.
        speed: of the model.
        folder: the run folder, where an earlier call may have left something.
        outer: seconds of a measured outer step, and its memory; None: worked out of the speed.
    """
    rows = len(draw(prepared.train, config.size, config.seed))
    work = Work(prepared, config.recipe, rows, speed.forward)
    model, loop, expert = prepared.model, config.outer, config.expert
    done = Done(folder)
    learning = speed.step * work.learning(loop)
    _, window = window_of(loop, config.recipe, rows)
    swept = speed.step_bytes
    if swept is not None:
        batch = min(config.recipe.batch_size, rows) * work.mean
        own = vectors_kept(likely(loop.engine, model.config.low), batch, model.width)
        swept += round(sweep_bytes(model, window, vectors=own))
    if outer is not None:
        learning, swept = loop.outer_steps * outer[0], outer[1]
    vectors = 4.0 * rows * work.mean * model.width  # at most: every token learnable
    pool = min(loop.pool, loop.outer_steps * loop.segments)
    kept = 3 * vectors + pool * snapshot_bytes(model)
    recording = Stage(
        f"recording {expert.experts} experts",
        speed.step * work.recording(expert, loop),
        speed.step_bytes,
        _snapshots(config, prepared),
    )
    checking = CHECKING_LOW if model.config.low else CHECKING
    by = with_judge(config.selection, config.data)
    stages = [
        choosing_stage(work, speed, config.start_by, by, "choosing the starting rows"),
        tuning_stage(work, speed, config.tune, config.tune_rates),
        Stage(CHECK, speed.step * checking * 4 * work.mean, speed.step_bytes),
        recording,
        Stage(
            f"learning, {loop.outer_steps} outer steps",
            learning,
            swept,
            kept,
        ),
        Stage("its checks on validation rows", speed.step * work.checking(loop), speed.step_bytes),
        *_table(config, work, speed, done),
    ]
    names = ("seeds", "tuning", "doctor")
    left = [
        shortened(stage, 1.0) if done.has(name) else stage
        for stage, name in zip(stages[:3], names, strict=True)
    ]
    if done.has("experts/0/manifest"):
        recording = shortened(recording, 1.0)
    share = done.learned(loop.outer_steps)
    left += [recording, *(shortened(stage, share) for stage in stages[4:6]), *stages[6:]]
    return without_nothing(left)


def _snapshots(config: DistillConfig, prepared: Prepared) -> float:
    """Bytes of the experts' snapshots."""
    expert = config.expert
    if config.outer.objective != "trajectory" or expert.expert_from:
        return 0.0
    steps = expert.recipe(config.recipe).total_steps(len(prepared.train))
    count = 1 + math.ceil(steps / expert.snapshot_every)
    tensors = MOMENTS if expert.expert_optimizer == "adamw" else 1 + bool(expert.expert_momentum)
    return float(expert.experts * count * snapshot_bytes(prepared.model, tensors))


def _table(config: DistillConfig, work: Work, speed: Speed, done: Done) -> list[Stage]:
    """The trainings and measurements of the table's rows."""
    rows = [*config.compare]
    if not config.recipe.shuffle:  # in order and shuffled
        rows += [f"{name}-shuffled" for name in ("seeds", "text") if name in rows]
    asked = table_trainings(work, rows, config.trainings, config.full_epochs)
    if not asked:
        return []
    report = work.forward * tokens_of(work.prepared.report.rows)
    number = sum(count for _, count, _ in asked)
    stage = Stage(
        f"table, {number} trainings",
        speed.step * math.fsum(count * (one + report) for _, count, one in asked),
        speed.step_bytes,
    )
    return [shortened(stage, min(1.0, done.count("ladder/*.json") / number))]


def measured(prepared: Prepared, recipe: Recipe, progress: Progress) -> Speed:
    """The speed of the model on its training rows; said, as it takes a few steps."""
    progress.say("measuring a step ...")
    return measure(prepared.model, prepared.train.rows, recipe)
