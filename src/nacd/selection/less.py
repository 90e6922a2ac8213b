"""LESS: rows whose Adam steps point where the target rows' gradients do (arXiv 2402.04333).

    warm-up     LoRA by AdamW on a few per cent of the training rows; theta, m, v kept at the end of
                each epoch i;  eta_i = mean learning rate of that epoch, scaled to sum 1
    training    Gamma_i(z) = m' / sqrt(v' + eps),  m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2
    target      g_i(z'), the plain gradient
    score       sum_i eta_i cos(S Gamma_i(z), S g_i(z')),  S a sparse random projection;
                mean within a subtask's target rows, then the largest over subtasks

In: a task with target rows. Out: a ranking. The folder gets `warmup/` (a checkpoint an epoch) and
`features/epoch-<i>-<train|target>/`; a run that is killed goes on from them. A checkpoint of weight
0 (a schedule that starts at rate 0, epochs of one step) is left out: nothing is counted of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data import collate, training_order
from nacd.errors import UserError
from nacd.experts.store import describe_model, describe_rows
from nacd.model.prepare import Part
from nacd.selection.features import MANIFEST, AdamDirection, FeatureSet, extract, sgd_direction
from nacd.selection.method import Ranking, Task, forward_flops
from nacd.selection.projection import Projection
from nacd.selection.rounds import round_robin, subtask_max
from nacd.store.cache import Cache, read_of
from nacd.store.files import content_sha256
from nacd.store.processes import first
from nacd.training.inner import InnerLoop, Start
from nacd.training.student import LEARNING_SEED
from nacd.training.update import initial_state

EPS = 1e-8
"""Inside the root of Gamma, as in LESS's code."""
SALT = 29
"""Sets the warm-up's draw of rows apart from other draws of the same seed."""


@dataclass(frozen=True)
class Checkpoint:
    """The warm-up at the end of an epoch."""

    epoch: int
    """From 1 on."""
    path: Path
    of: dict[str, str]
    """What the file says that it is of."""
    sha256: str
    """Of theta, m and v."""
    weight: float
    """eta."""

    def load(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Theta, m and v, each (P,)."""
        tensors, _ = read_of(self.path, self.of)
        theta, m, v = (tensors[name].to(device) for name in ("theta", "m", "v"))
        return theta, m, v


def less(task: Task) -> Ranking:
    """Training rows by LESS.

    With `round_robin` the target rows take turns to choose, and a row's score is its largest one
    with any target row.

    Raises:
        UserError: another optimiser than AdamW, a folder with features of another projection or
            checkpoint, a damaged file, or a warm-up that diverges.
    """
    if task.recipe.optimizer != "adamw":
        raise UserError(
            f"--optimizer {task.recipe.optimizer}: less takes Adam's moments from its warm-up; "
            "give --optimizer adamw."
        )
    checkpoints = [c for c in first(lambda: warm_up(task)) if c.weight > 0]
    sets = gradient_features(task, checkpoints)
    blocks = similarity([c.weight for c in checkpoints], sets)
    flops = _flops(task, len(checkpoints))
    if task.config.round_robin:
        scores = np.concatenate([*blocks])
        return Ranking(round_robin(scores), scores.max(axis=1), flops)
    groups = [example.group for example in task.prepared.target.examples]
    scores = np.concatenate([subtask_max(block, groups) for block in blocks])
    return Ranking(np.argsort(-scores, kind="stable").tolist(), scores, flops)


# --- the warm-up ------------------------------------------------------------------------------


def warm_up_rows(task: Task) -> list[int]:
    """Indices of the training rows that the warm-up trains on: a seeded draw."""
    rows = len(task.prepared.train)
    order = np.random.default_rng((task.seed, SALT)).permutation(rows).tolist()
    return order[: max(1, round(task.config.warmup_share * rows))]


def warm_up_recipe(task: Task) -> Recipe:
    """The task's recipe, as long as the warm-up."""
    return replace(task.recipe, epochs=float(task.config.warmup_epochs), steps=0)


def epoch_weights(recipe: Recipe, epochs: int, steps: int) -> list[float]:
    """eta: every epoch's mean learning rate as a share of their sum.

    Args:
        recipe: its schedule counts.
        epochs: number of epochs.
        steps: steps of one epoch.

    Raises:
        UserError: all of it is at rate 0.
    """
    rates = [recipe.rate(k, epochs * steps) for k in range(epochs * steps)]
    means = [math.fsum(rates[i * steps : (i + 1) * steps]) / steps for i in range(epochs)]
    if not sum(means) > 0:
        raise UserError(
            f"--warmup-epochs {epochs}: the warm-up is {len(rates)} steps long and all at learning "
            "rate 0; give more epochs, a larger --warmup-share or a smaller --batch-size."
        )
    return [mean / math.fsum(means) for mean in means]


def warm_up(task: Task) -> list[Checkpoint]:
    """Train the warm-up, or go on with it; the checkpoint of every epoch.

    Raises:
        UserError: the folder holds another warm-up, a checkpoint is damaged, or training diverges.
    """
    prepared, recipe, epochs = task.prepared, warm_up_recipe(task), task.config.warmup_epochs
    model, folder = prepared.model, task.folder / "warmup"
    chosen = warm_up_rows(task)
    part = Part(
        tuple(prepared.train.examples[i] for i in chosen),
        tuple(prepared.train.rows[i] for i in chosen),
    )
    rows = part.rows
    total = recipe.total_steps(len(rows))
    steps = total // epochs
    weights = epoch_weights(recipe, epochs, steps)
    made_with = {"method": "less, warm-up", "recipe": asdict(recipe), "seed": task.seed}
    cache = Cache(folder)
    of = {"made_with": cache.belongs(MANIFEST, made_with | _model(task) | _rows(part))}
    loop = InnerLoop(model, recipe, total)
    log_rate = torch.tensor(math.log(recipe.learning_rate), device=model.device)
    order = training_order(len(rows), recipe.batch_size, total, task.seed)
    theta = model.fresh_theta(LEARNING_SEED + task.seed)  # not that of a table's training
    at = Start(theta, initial_state(recipe, theta))
    found: list[Checkpoint] = []

    def trained(at: Start, until: int) -> dict[str, Tensor]:
        for k in range(at.count, until):
            batch = collate([rows[i] for i in order[k]], model.tokenizer.pad_token_id)
            at, (loss,) = loop.run(at, [batch], log_rate, None)
            if not (math.isfinite(loss) and bool(torch.isfinite(at.theta).all())):
                raise UserError(
                    f"less: the warm-up's loss is {loss} at step {k + 1} of {total}: training "
                    f"diverged at --learning-rate {recipe.learning_rate:g}; give a smaller one."
                )
            tick(at.count, loss)
        return {"theta": at.theta, "m": at.state[0], "v": at.state[1]}

    with task.progress.stage("less: warm-up", total) as tick:
        for epoch, weight in enumerate(weights, 1):
            name, end = f"epoch-{epoch}", epoch * steps
            tensors = cache.tensors(name, partial(trained, at, end), of=of)
            path = folder / f"{name}.safetensors"
            found.append(Checkpoint(epoch, path, of, content_sha256(tensors), weight))
            state = (tensors["m"].to(model.device), tensors["v"].to(model.device))
            at = Start(tensors["theta"].to(model.device), state, end)
    return found


def _model(task: Task) -> dict[str, Any]:
    """What of the model its gradients depend on; LoRA's matrices are counted, not listed."""
    described = describe_model(task.prepared.model)
    return {"model": described | {"theta": task.prepared.model.size}}


def _rows(part: Part) -> dict[str, Any]:
    """The rows' digests, and a hash of their token ids and labels (of the template, that is)."""
    digests = [example.digest for example in part.examples]
    return {"rows": digests, "tokens": describe_rows(part.rows, digests)["tokens"]}


# --- features and scores ----------------------------------------------------------------------


def gradient_features(
    task: Task, checkpoints: Sequence[Checkpoint]
) -> list[tuple[FeatureSet, FeatureSet]]:
    """Features of the training rows and of the target rows at every checkpoint.

    Raises:
        UserError: features of another projection or checkpoint, or damaged ones, are there.
    """
    prepared, recipe, model = task.prepared, task.recipe, task.prepared.model
    projection = Projection(model.size, task.config.projection_dim, task.seed, model.device)
    sets = [
        (_features(task, c, "train", projection), _features(task, c, "target", projection))
        for c in checkpoints
    ]
    done = 0

    def row_done() -> None:
        nonlocal done
        done += 1
        tick(done, math.nan)

    total = len(checkpoints) * (len(prepared.train) + len(prepared.target))
    with task.progress.stage("less: gradients", total) as tick:
        for checkpoint, (train, target) in zip(checkpoints, sets, strict=True):
            theta, m, v = checkpoint.load(model.device)
            adam = AdamDirection(m, v, recipe.beta1, recipe.beta2, EPS)
            for way, part, into in (
                (sgd_direction, prepared.target, target),
                (adam, prepared.train, train),
            ):
                extract(model, theta, way, projection, part, into, recipe.batch_size, row_done)
    return sets


def _features(
    task: Task, checkpoint: Checkpoint, name: Literal["train", "target"], projection: Projection
) -> FeatureSet:
    """The folder for one part's features, made or found to be of the same making."""
    part: Part = getattr(task.prepared, name)
    folder = task.folder / "features" / f"epoch-{checkpoint.epoch}-{name}"
    made_with = {
        "method": "less",
        "gradient": "adam" if name == "train" else "sgd",
        "projection": projection.describe(),
        "checkpoint": checkpoint.sha256,
        "betas": [task.recipe.beta1, task.recipe.beta2],
    }
    made_with |= _model(task) | _rows(part)
    return FeatureSet(folder, made_with, len(part))


def similarity(
    weights: Sequence[float], sets: Sequence[tuple[FeatureSet, FeatureSet]]
) -> Iterator[np.ndarray]:
    """Scores of training rows with every target row, (<= 128, t) float64, shard by shard.

    Args:
        weights: eta of every checkpoint.
        sets: its features: training rows, target rows.
    """
    targets = [torch.cat([*target.read()]) for _, target in sets]
    for shards in zip(*(train.read() for train, _ in sets), strict=True):
        yield sum(
            weight * (shard @ target.T).double().numpy()
            for weight, shard, target in zip(weights, shards, targets, strict=True)
        )  # pyright: ignore[reportReturnType] (there is a checkpoint)


def _flops(task: Task, checkpoints: int) -> float:
    """Forward and backward passes of the warm-up and of the features."""
    train, target = task.prepared.train.rows, task.prepared.target.rows
    trained = task.config.warmup_epochs * sum(len(train[i]) for i in warm_up_rows(task))
    seen = checkpoints * sum(len(row) for row in (*train, *target))
    return 2 * forward_flops(task.prepared.model, trained + seen)
