"""Train LoRA on the full rows and record the trajectory theta*_0 .. theta*_T.

    (theta, s)_(k+1) = U(theta_k, s_k, g_k, rate(k)),   g_k = grad_theta l(theta_k; rows of step k)

In: encoded rows and a recipe. Out: an `Expert` whose snapshots carry the optimiser's state, so that
a student may start at any of them as the expert itself went on (NACD, arXiv 2504.09818; MTT, arXiv
2203.11932). The update U is the inner loop's own. Everything that a step needs is in the snapshot
before it and in (recipe, seed, rows): a run that is killed goes on from the last whole snapshot and
gives the same bits on the CPU (with the same number of threads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data import Encoded, collate, training_order
from nacd.errors import UserError
from nacd.experts.store import Expert, Writer, describe_model, describe_rows, open_expert
from nacd.meta import Start, initial_state, step
from nacd.model.lora import LoraModel

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all, and the step's loss."""


def snapshot_steps(total: int, every: int) -> list[int]:
    """Steps after which there is a snapshot: 0, every, 2 every, ..., total.

    Raises:
        UserError: `every` is below 1.
    """
    if every < 1:
        raise UserError(f"--snapshot-every {every}: must be at least 1.")
    return [*range(0, total, every), total]


def record_expert(
    model: LoraModel,
    rows: Sequence[Encoded],
    digests: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    every: int,
    folder: Path,
    pad_id: int,
    progress: Progress | None = None,
    held_out: Callable[[Tensor], float] | None = None,
) -> Expert:
    """Train an expert, or go on with the one begun in `folder`.

    Args:
        model: its LoRA is overwritten.
        rows: n encoded rows.
        digests: a name for every row (`Example.digest`).
        recipe: optimiser, schedule, batch size and length.
        seed: of LoRA's first values and of the rows' order.
        every: S, steps from snapshot to snapshot; step 0 and the last have one, too.
        folder: the expert's own; damaged snapshots in it are made again.
        pad_id: padding token id.
        progress: called after every step; not for the steps that were there.
        held_out: theta (P,) to a held-out loss, taken at every new snapshot.

    Raises:
        UserError: no row, a recipe out of range, a loss that is no longer finite, a full disk, or a
            folder made with another configuration or with rows in another order.
    """
    recipe.check()
    if not rows:
        raise UserError("no rows to train an expert on: give --data a file with rows.")
    if len(rows) != len(digests):
        raise ValueError(f"{len(rows)} rows but {len(digests)} digests")
    recipe.check_rows(
        len(rows), batch="--expert-batch", epochs="--expert-epochs", steps="--expert-steps"
    )
    total = recipe.total_steps(len(rows))
    due = set(snapshot_steps(total, every))
    order = training_order(len(rows), recipe.batch_size, total, recipe.order_seed(seed))
    made_with = describe_model(model) | describe_rows(rows, digests)
    made_with |= {"recipe": asdict(recipe), "seed": seed, "every": every, "total": total}
    writer = Writer(folder, made_with, order=(digests, order))

    def keep(start: Start, losses: list[float]) -> None:
        writer.add(start, losses, None if held_out is None else held_out(start.theta))

    start = writer.last()
    if start is None:
        theta = model.fresh_theta(seed)
        start = Start(theta, initial_state(recipe, theta))
        keep(start, [])
    theta = start.theta.to(model.device)
    state = tuple(part.to(model.device) for part in start.state)
    losses: list[float] = []
    for k in range(start.count, total):
        batch = collate([rows[i] for i in order[k]], pad_id)
        loss, gradient, _ = model.value_and_grad(theta, batch)
        rate = theta.new_tensor(recipe.learning_rate * recipe.rate(k, total))
        theta, state = step(recipe, theta, state, gradient, rate, k)
        losses.append(float(loss))
        if not (math.isfinite(losses[-1]) and bool(torch.isfinite(theta).all())):
            raise UserError(
                f"the expert's loss is {losses[-1]} at step {k + 1} of {total}: training diverged "
                f"at --expert-rate {recipe.learning_rate:g}; give a smaller one."
            )
        if k + 1 in due:
            keep(Start(theta, state, k + 1), losses)
            losses = []
        if progress is not None:
            progress(k + 1, total, float(loss))
    return open_expert(folder)
