"""`nacd experts` and `nacd doctor`, as functions for Python and for the command line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from nacd.config import DistillConfig, decided
from nacd.costs.estimate import Estimate, estimate
from nacd.costs.forecasts import distillation, measured
from nacd.distillation.agreement import Agreement, measure
from nacd.distillation.learn import Distiller, draw, make_starts, refuse_without_rows
from nacd.distillation.pool import students, window_of
from nacd.distillation.stages import check_trainings, open_run, recorded_experts
from nacd.experts import Expert
from nacd.meta import make_engine
from nacd.meta.diagnosis import TRIALS, Diagnosis, diagnose
from nacd.model.prepare import prepare, read_splits
from nacd.terminal.progress import Progress
from nacd.terminal.units import duration

COMPARING = 41
"""Ordinary training steps that comparing all engines is worth."""


class Examined(NamedTuple):
    """What `doctor` found."""

    diagnosis: Diagnosis
    """Which engines are right."""
    estimate: Estimate | None
    """What the planned run takes; None where no engine is right."""
    agreement: Agreement | None
    """How far meta-gradients of several orders agree; None where that was not asked, or for
    `trajectory`, whose experts are not there yet."""


def record_experts(config: DistillConfig, *, progress: Progress | None = None) -> list[Expert]:
    """Record the expert trajectories of a run; `distill` with the same flags then uses them.

    Raises:
        UserError: a wrong input; snapshots already made are kept.
    """
    progress = progress or Progress()
    config.check()
    config = replace(config, outer=decided(config.outer, config.data))
    splits = read_splits(config.data)
    folder = open_run(config, splits)
    prepared = prepare(config.model, config.data, progress.say, splits, folder.memory)
    return recorded_experts(config, prepared, folder, progress)


def doctor(config: DistillConfig, *, progress: Progress | None = None) -> Examined:
    """Compare the engines on two real batches of the user's data, and estimate the planned run.

    Raises:
        UserError: a wrong input.
    """
    progress = progress or Progress(quiet=True)
    config.check()
    config = replace(config, outer=decided(config.outer, config.data))
    progress.say(f"reading {config.data.data} and loading {config.model.model} ...")
    prepared = prepare(config.model, config.data, progress.say)
    check_trainings(config, prepared)
    starts = make_starts(
        prepared, draw(prepared.train, config.size, config.seed), config.outer.learn
    )
    refuse_without_rows(config, prepared, starts)
    speed = measured(prepared, config.recipe, progress)
    batches = starts.pseudo.batches(config.recipe.batch_size, 2, seed=1)
    comparing = speed.step * COMPARING * sum(batch.tokens for batch in batches) / 2
    progress.expect(comparing)
    progress.say(f"comparing the engines on two batches: about {duration(comparing)} ...")
    with progress.stage("engines", TRIALS) as tick:
        diagnosis = diagnose(
            prepared.model,
            config.recipe,
            batches,
            prepared.model.embed(starts.pseudo.ids).to(torch.float32),
            thorough=True,
            tick=lambda done: tick(done, math.nan),
        )
    if diagnosis.verdict is None:
        return Examined(diagnosis, None, None)
    steps = math.ceil(
        config.expert.recipe(config.recipe).total_steps(len(prepared.train))
        / config.expert.snapshot_every
    )
    trajectory = config.outer.objective == "trajectory"
    judged = len(prepared.target)
    if config.outer.objective == "train-loss":
        judged = config.outer.objective_rows
    ahead, window = window_of(config.outer, config.recipe, len(starts.rows))
    planned = estimate(
        prepared.model,
        config.recipe,
        max(
            starts.pseudo.batches(config.recipe.batch_size, 4, seed=1),
            key=lambda b: b.ids.numel(),
        ),
        prepared.model.embed(starts.pseudo.ids).to(torch.float32),
        rows=len(starts.rows),
        outer_steps=config.outer.outer_steps,
        engine=diagnosis.verdict.engine,
        eps=diagnosis.verdict.eps or config.outer.fd_eps,
        window=window,
        student_steps=ahead * students(config.outer, config.outer.outer_steps),
        segments=config.outer.segments,
        target_batches=0 if trajectory else math.ceil(judged / config.recipe.batch_size),
        snapshots=config.expert.experts * (steps + 1) if trajectory else config.outer.pool,
    )
    outer = (planned.outer_seconds, planned.peak_bytes)
    planned = replace(planned, forecast=distillation(config, prepared, speed, outer=outer))
    agreed = None
    if config.outer.agreement and not trajectory:
        engine = make_engine(diagnosis.verdict.engine, diagnosis.verdict.eps or config.outer.fd_eps)
        with TemporaryDirectory() as folder:
            distiller = Distiller(
                config, prepared, starts, config.recipe, engine, [], Path(folder), progress
            )
            agreed = measure(distiller, len(starts.rows))
    return Examined(diagnosis, planned, agreed)
