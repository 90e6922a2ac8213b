"""How pseudo-prompts are learned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from nacd.config.rows import DataConfig
from nacd.store.renamed import old_names_too


@old_names_too
@dataclass(frozen=True)
class OuterLoopConfig:
    """How the pseudo-prompts are learned."""

    objective: Literal["auto", "target-loss", "train-loss", "trajectory"] = "auto"
    """Loss after training on target rows, or on other training rows; or the paper's `trajectory`.
    `auto`: on target rows where --target names them, else on training rows."""
    objective_rows: int = 64
    """`train-loss`: rows of it, other training rows (never starting rows) at every outer step."""
    outer_steps: int = 40
    """Updates of the prompts; each runs a training, or its end, and sweeps back."""
    learn: str = "prompt"
    """Learnable positions: `prompt`, or `prefix:K` for K extra tokens before it."""
    projection: Literal["nearest", "straight-through", "simplex"] = "simplex"
    """How vectors become tokens (`nearest` is the paper's)."""
    engine: Literal["auto", "exact", "first-order", "one-sided", "tesla"] = "auto"
    """Meta-gradient engine: `first-order` is safe, `one-sided` a third faster and coarser, `exact`
    needs most memory; `auto` asks the doctor's short check."""
    fd_eps: float = 2e-3
    """Finite-difference step of the first-order engines, as a share of |theta|."""
    window: int = 0
    """Inner steps differentiated through: the last ones, from a student of --pool (0: the last
    epoch); without a pool, some at a random place (0: the whole training)."""
    pool: int = 3
    """Students, trained on the current rows up to the window, each in an order of its own, that
    inner loops start from in turn; 0: every inner loop trains from the beginning."""
    renew: int = 4
    """Outer steps after which one student of the pool makes room for a new one."""
    segments: int = 1
    """Inner loops averaged in one outer step: less noise, at their time."""
    agreement: int = 3
    """Inner loops, each in an order of its own, whose meta-gradients are held against each other
    before anything is learned (`nacd doctor`, too); 0: none."""
    expert_start: int = 0
    """`trajectory`: latest expert step (of those with a snapshot) that a segment starts from."""
    expert_ahead: int = 0
    """`trajectory`: M, expert steps from a segment's start to its goal; 0: to the expert's end."""
    step_size: float = 0.0
    """Adam's learning rate on what is learned; 0: 0.02 for vectors, 0.2 for simplex logits."""
    rate_step_size: float = 0.0
    """Adam's learning rate on the student's log learning rate; 0 keeps it fixed."""
    trim: float = 0.01
    """Share of each inner step's gradient cotangents, the largest, that are clamped; 0: none."""
    beta: float = 0.0
    """Weight of the neighbour regulariser, which draws vectors (`nearest`) to tokens; 0: off."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of the neighbour regulariser and of the nearest rows."""
    candidates: int = 16
    """`simplex`: candidate tokens a position: the row's own, neighbours, the model's guesses."""
    start_share: float = 0.6
    """`simplex`: probability of the starting row's own token at the start."""
    cold: float = 0.15
    """`simplex`: softmax temperature at the end (1 at the start)."""
    check_every: int = 10
    """Outer steps between two checks on the validation rows."""
    check_trainings: int = 3
    """Trainings averaged in such a check."""


def decided(outer: OuterLoopConfig, data: DataConfig) -> OuterLoopConfig:
    """The outer loop with its objective named."""
    if outer.objective != "auto":
        return outer
    return dataclasses.replace(outer, objective="target-loss" if data.target else "train-loss")
