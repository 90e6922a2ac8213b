"""The segments that outer steps learn from: trainings, windows of them, stretches of experts.

The number of a segment (outer step times segments a step, plus its place) decides all of it, so
that a run that goes on takes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from nacd.config import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import Batch, Encoded, bucketed, training_order
from nacd.distillation.outer import OuterLoop, Segment
from nacd.errors import UserError
from nacd.experts import Expert
from nacd.meta import InnerLoop, Start, initial_state
from nacd.meta.objectives import target_objective, trajectory_objective
from nacd.model.prepare import Prepared
from nacd.training.student import LEARNING_SEED


def segment_generator(number: int) -> np.random.Generator:
    """What draws a segment's stretch of an expert's trajectory and its shuffle, or its rows."""
    return np.random.default_rng((number, 5))


def matched_steps(
    steps: Sequence[int], latest: int, ahead: int, generator: np.random.Generator
) -> tuple[int, int]:
    """First step and goal's step of a stretch of an expert's trajectory.

    Args:
        steps: the expert's steps that have a snapshot, in order.
        latest: latest step to start from.
        ahead: steps from start to goal; 0: to the expert's end.
        generator: draws the start.
    """
    first = int(generator.choice([s for s in steps[:-1] if s <= latest] or steps[:1]))
    return first, goal_step(steps, first, ahead)


def goal_step(steps: Sequence[int], first: int, ahead: int) -> int:
    """Goal's step of a stretch from `first`: the first snapshot `ahead` steps on, or the last."""
    return min(s for s in steps if s >= min(first + (ahead or steps[-1]), steps[-1]))


def _refuse_still(experts: Sequence[Expert], ahead: int) -> None:
    """Refuse experts that stand still from their first snapshot to its goal.

    Only there can they: a warm-up begins at a learning rate of 0.

    Raises:
        UserError: with the flag that mends it.
    """
    for expert in experts:
        first, goal = expert.steps[0], goal_step(expert.steps, expert.steps[0], ahead)
        thetas = [expert.snapshot(step, "cpu").theta for step in (first, goal)]
        if torch.equal(*thetas):
            raise UserError(
                f"--expert-ahead {ahead}: the expert in {expert.folder} does not move from its "
                f"step {first} to its step {goal} (a warm-up begins at a learning rate of 0), so "
                "there is nothing to match; give a larger one."
            )


def segment_maker(
    prepared: Prepared,
    recipe: Recipe,
    config: OuterLoopConfig,
    rows: int,
    experts: Sequence[Expert],
    pool: Sequence[Encoded] = (),
) -> Callable[[int, int], Segment]:
    """A function (outer step, segment number) -> segment, the same at every run.

    Args:
        prepared: the model and the target rows.
        recipe: of the trainings.
        config: the objective and its settings.
        rows: rows that are trained on.
        experts: for `trajectory`.
        pool: for `train-loss`, the rows that its objective draws from.

    Raises:
        ValueError: the objective is still `auto`; see `nacd.config.decided`.
        UserError: an expert that stands still.
    """
    if config.objective == "auto":
        raise ValueError("auto is no objective; see nacd.config.decided")
    if config.objective == "trajectory":
        _refuse_still(experts, config.expert_ahead)
    model = prepared.model
    total = recipe.total_steps(rows)
    window = min(config.window or total, total)
    pad = model.tokenizer.pad_token_id
    target = bucketed(prepared.target.rows, recipe.batch_size, pad, model.device)

    def judged(number: int) -> list[Batch]:
        if config.objective == "target-loss":
            return target
        count = min(config.objective_rows, len(pool))
        drawn = segment_generator(number).choice(len(pool), count, replace=False)
        return bucketed([pool[i] for i in drawn], recipe.batch_size, pad, model.device)

    def trajectory(number: int, generator: np.random.Generator) -> Segment:
        expert = experts[number % len(experts)]
        first, goal_step = matched_steps(
            expert.steps, config.expert_start, config.expert_ahead, generator
        )
        start = expert.snapshot(first, model.device)
        goal = expert.snapshot(goal_step, model.device)
        loop = InnerLoop(model, recipe, total)
        if first == 0:  # the whole recipe, from the expert's own initial values
            start = Start(start.theta, initial_state(recipe, start.theta))
        else:  # along the expert's path, at a constant rate
            loop = InnerLoop(model, replace(recipe, schedule="constant", warmup=0.0), total)
            fits = len(start.state) == len(initial_state(recipe, start.theta))
            if expert.state == "zeros" or not fits:  # moments unknown: count steps from here
                start = Start(start.theta, initial_state(recipe, start.theta))
        shuffled = recipe.order_seed(int(generator.integers(1 << 30)))
        order = training_order(rows, recipe.batch_size, total, shuffled)
        begin = 0 if recipe.shuffle else int(generator.integers(0, total - window + 1))
        order = order[begin : begin + window]
        objective = trajectory_objective(start.theta, goal.theta)
        return Segment(loop, start, order, objective)

    def make(step: int, part: int) -> Segment:
        number = step * config.segments + part
        if config.objective == "trajectory":
            return trajectory(number, segment_generator(number))
        seed = LEARNING_SEED + number
        loop = InnerLoop(model, recipe, total)
        theta = model.fresh_theta(seed)
        order = training_order(rows, recipe.batch_size, total, recipe.order_seed(seed))
        return Segment(
            loop,
            Start(theta, initial_state(recipe, theta)),
            order,
            target_objective(model, judged(number)),
        )

    return make


def windowed(segment: Segment, window: int, step: int, outer: OuterLoop) -> Segment:
    """Move a whole-recipe segment to `window` steps along the student's own path.

    Windows in which nothing moves (of one step, at the warm-up's rate of 0) are not drawn.
    """
    total = len(segment.order)
    if window == 0 or window >= total:
        return segment
    recipe = segment.loop.recipe
    moves = [recipe.rate(k, total) > 0 for k in range(total)]
    starts = [k for k in range(total - window + 1) if any(moves[k : k + window])]
    first = starts[int(np.random.default_rng((step, 23)).integers(0, len(starts)))]
    pseudo, vectors = outer.pseudo, outer.vectors().detach()
    at, _ = segment.loop.run(
        segment.start,
        [pseudo.batch(rows) for rows in segment.order[:first]],
        outer.log_rate.to(vectors),
        vectors,
    )
    return replace(segment, start=at, order=segment.order[first : first + window])
