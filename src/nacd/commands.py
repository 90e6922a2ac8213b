"""`nacd experts` and `nacd doctor`, as functions for Python and for the command line."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from nacd.config import DistillConfig, decided
from nacd.diagnosis import TRIALS, Diagnosis, diagnose
from nacd.estimate import Estimate, estimate
from nacd.experts import Expert
from nacd.forecasts import distillation, measured
from nacd.learn import draw, make_seeds
from nacd.prepare import prepare, read_splits
from nacd.progress import Progress
from nacd.stages import check_trainings, open_run, recorded_experts
from nacd.units import duration

COMPARING = 41
"""Ordinary training steps that comparing all engines is worth."""


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


def doctor(
    config: DistillConfig, *, progress: Progress | None = None
) -> tuple[Diagnosis, Estimate | None]:
    """Compare the engines on two real batches of the user's data, and estimate the planned run.

    Returns:
        What the comparison found, and the estimate; None where no engine is right.

    Raises:
        UserError: a wrong input.
    """
    progress = progress or Progress(quiet=True)
    config.check()
    config = replace(config, outer=decided(config.outer, config.data))
    progress.say(f"reading {config.data.data} and loading {config.model.model} ...")
    prepared = prepare(config.model, config.data, progress.say)
    check_trainings(config, prepared)
    seeds = make_seeds(
        prepared, draw(prepared.train, config.budget, config.seed), config.outer.learn
    )
    speed = measured(prepared, config.recipe, progress)
    batches = seeds.pseudo.batches(config.recipe.batch_size, 2, seed=1)
    comparing = speed.step * COMPARING * sum(batch.tokens for batch in batches) / 2
    progress.expect(comparing)
    progress.say(f"comparing the engines on two batches: about {duration(comparing)} ...")
    with progress.stage("engines", TRIALS) as tick:
        diagnosis = diagnose(
            prepared.model,
            config.recipe,
            batches,
            prepared.model.embed(seeds.pseudo.ids).to(torch.float32),
            thorough=True,
            tick=lambda done: tick(done, math.nan),
        )
    if diagnosis.verdict is None:
        return diagnosis, None
    steps = math.ceil(
        config.expert.recipe(config.recipe).total_steps(len(prepared.train))
        / config.expert.snapshot_every
    )
    trajectory = config.outer.objective == "trajectory"
    judged = len(prepared.target)
    if config.outer.objective == "train-loss":
        judged = config.outer.objective_rows
    planned = estimate(
        prepared.model,
        config.recipe,
        max(
            seeds.pseudo.batches(config.recipe.batch_size, 4, seed=1),
            key=lambda b: b.ids.numel(),
        ),
        prepared.model.embed(seeds.pseudo.ids).to(torch.float32),
        rows=len(seeds.rows),
        outer_steps=config.outer.outer_steps,
        engine=diagnosis.verdict.engine,
        eps=diagnosis.verdict.eps or config.outer.fd_eps,
        window=config.outer.window,
        segments=config.outer.segments,
        target_batches=0 if trajectory else math.ceil(judged / config.recipe.batch_size),
        snapshots=config.expert.experts * (steps + 1) if trajectory else 0,
    )
    outer = (planned.outer_seconds, planned.peak_bytes)
    return diagnosis, replace(planned, forecast=distillation(config, prepared, speed, outer=outer))
