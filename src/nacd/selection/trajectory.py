"""Real rows by NACD's own engine: what each is worth to the training that it is meant for.

The training rows are dealt out, seeded, into groups of the budget's size, but of two rows at least.
Each group is trained on by the whole recipe, the loss on the target rows is carried back through
that training, and every row of the group gets the objective's derivative in its weight
(`nacd.meta.weight_gradient`): one sweep a group, whatever its size. Within a group, scores are made
comparable (zero mean, unit standard deviation); a row's score is their mean over `--weight-passes`
dealings. Rows whose weight lowers the target loss most come first; the budget is filled, and how
many of its rows raise that loss is said.

The first-order worth of a row to a training is the idea of influence functions (Koh & Liang, arXiv
1703.04730); through a whole training by way of its meta-gradient, that of MAGIC (arXiv 2504.16430).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from nacd.data import bucketed, collate, training_order
from nacd.errors import UserError
from nacd.meta import FirstOrder, weight_gradient
from nacd.meta.objectives import target_objective
from nacd.selection.method import Ranking, Task, forward_flops
from nacd.selection.random import random_order
from nacd.store.cache import read_of
from nacd.store.files import write_tensors
from nacd.training.inner import InnerLoop, Start
from nacd.training.student import LEARNING_SEED
from nacd.training.update import initial_state

TRIM = 0.01
"""Share of each step's cotangent entries that are clamped; see `nacd.meta.clamp_largest`."""
EPS = 2e-3


def trajectory(task: Task) -> Ranking:
    """Rank the rows by their worth; goes on after the last group weighed.

    Raises:
        UserError: a training diverged, or weights made with other settings in the same folder.
    """
    prepared, recipe = task.prepared, task.recipe
    model = prepared.model
    pad = model.tokenizer.pad_token_id
    targets = bucketed(prepared.target.rows, recipe.batch_size, pad, model.device)
    objective = target_objective(model, targets)
    log_rate = torch.tensor(math.log(recipe.learning_rate), device=model.device)
    size = _group_size(task)
    groups = deal(len(prepared.train), size, task.config.weight_passes, task.seed)
    file = task.folder / "weights.safetensors"
    scores, worths, done, flops = _read(task, len(groups))
    of = _of(task, len(groups))
    with task.progress.stage("weighing rows", len(groups), done=done) as tick:
        for number in range(done, len(groups)):
            group = groups[number]
            recipe.check_rows(len(group))
            total = recipe.total_steps(len(group))
            loop = InnerLoop(model, recipe, total)
            seed = LEARNING_SEED + number
            theta = model.fresh_theta(seed)
            order = training_order(len(group), recipe.batch_size, total, seed)
            rows = [task.trained_row(i) for i in group]
            batches = [collate([rows[i] for i in where], pad) for where in order]
            swept, found = weight_gradient(
                loop,
                Start(theta, initial_state(recipe, theta)),
                batches,
                log_rate,
                objective,
                FirstOrder(EPS, central=False),
                trim=TRIM,
            )
            worth = np.zeros(len(group))
            for where, derivative in zip(order, found, strict=True):
                np.subtract.at(worth, where, derivative.cpu().double().numpy())
            if not np.isfinite(worth).all():
                raise UserError(
                    f"--method trajectory: the training of group {number + 1} of {len(groups)} "
                    f"diverges at --learning-rate {recipe.learning_rate:g}; give a smaller one."
                )
            scores[group] += (worth - worth.mean()) / (worth.std() + 1e-12)
            worths[group] += worth
            seen = 2 * sum(b.tokens for b in batches) + sum(b.tokens for b in targets)
            flops += 2 * forward_flops(model, seen)
            write_tensors(
                file,
                {"scores": torch.from_numpy(scores), "worths": torch.from_numpy(worths)},
                {"done": str(number + 1), "flops": repr(flops)} | of,
            )
            tick(number + 1, swept.value)
    mean = scores / task.config.weight_passes
    order = np.argsort(-mean, kind="stable")
    if worse := int((worths[order[:size]] < 0).sum()):
        task.progress.say(
            f"trajectory: {worse} of the best {size} rows raise the target loss by their weight; "
            "a smaller --budget takes fewer of them."
        )
    return Ranking(order.tolist(), mean, flops)


def deal(rows: int, size: int, passes: int, seed: int) -> list[list[int]]:
    """Groups of `size` row indices in which every row stands `passes` times.

    Each pass is a shuffle of its own, cut into groups as even as can be (of `size` or one less).
    None is of one row, whose worth could not be told from its group's: for so small a size there
    are fewer and larger groups.
    """
    count = min(math.ceil(rows / size), max(1, rows // 2))
    groups: list[list[int]] = []
    for number in range(passes):
        order = np.random.default_rng((seed, number, 31)).permutation(rows)
        groups += [part.tolist() for part in np.array_split(order, count)]
    return groups


def _group_size(task: Task) -> int:
    rows = task.prepared.train.rows
    return len(task.budget.rows(rows, random_order(len(rows), task.seed)))


def _of(task: Task, groups: int) -> dict[str, str]:
    rows = f"{len(task.prepared.train)} rows {task.rows_digest()}"
    of = f"{rows}, {groups} groups, seed {task.seed}, {task.recipe}"
    return {"of": of, "tokens": task.tokens_digest()}


def _nothing(task: Task) -> tuple[np.ndarray, np.ndarray, int, float]:
    rows = len(task.prepared.train)
    return np.zeros(rows), np.zeros(rows), 0, 0.0


def _read(task: Task, groups: int) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Sums so far of scores and of falls of the objective (n,), groups done, operations spent."""
    file = task.folder / "weights.safetensors"
    if not file.is_file():
        return _nothing(task)
    tensors, about = read_of(file, _of(task, groups), lately=("tokens",))
    if "worths" not in tensors:  # an older version's
        return _nothing(task)
    sums = tensors["scores"].numpy(), tensors["worths"].numpy()
    return *sums, int(about["done"]), float(about["flops"])
