"""A row of a results table, and one training of it: the same for every command that has a table.

Same recipe, same batch size, same training seeds for all rows; what a distillation learned keeps
the learning rate that was learned with it. Rows that were learned or chosen in an order are visited
in it where the recipe does not shuffle; all others are always shuffled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nacd.comparison.failures import Failure
from nacd.config.recipe import Recipe
from nacd.data import Example
from nacd.data.rows import Rows
from nacd.model.prepare import Prepared
from nacd.training.student import Tick, train_student, visited


@dataclass(frozen=True)
class Training:
    """One training: the rows under a target's tokenizer, and what is particular to it."""

    data: Rows | None
    """None trains nothing."""
    vectors: Tensor | None = None
    """Soft prompts (Q, d) for the rows' slots."""
    learning_rate: float | None = None
    """If not the recipe's."""
    faster: float = 1.0
    """Learning rate in multiples of the recipe's."""
    epochs: float | None = None
    """If not the recipe's own length."""
    steps: int | None = None
    """If not as many as that length takes."""
    in_order: bool = False
    """Rows that were learned or chosen in an order: visited in it, where the recipe does not
    shuffle."""
    tokens_changed: float | None = None
    """Share of the learnable tokens that differ from the starting rows'."""
    boundaries_kept: float | None = None
    """Share of the source's token boundaries in the learned prompts that the target has too."""

    @property
    def digest(self) -> str:
        """A hash of the rows, and of the vectors in their slots."""
        return (self.data or Rows((), 0)).digest(self.vectors)


def encoded(examples: Sequence[Example], target: Prepared) -> Rows:
    """Rows under a target's template and tokenizer, labelled as exported rows are."""
    pad = target.model.tokenizer.pad_token_id
    return Rows.of([target.template.as_exported(example) for example in examples], pad)


@dataclass(frozen=True)
class RowSet:
    """A row of the table: which trainings stand behind it, and what choosing its rows cost."""

    method: str
    training: Callable[[Prepared, int], Training]
    """(target model and rows, training seed) -> training."""
    trainings: int
    choosing_seconds: float | None = None
    choosing_flops: float | None = None
    draws: int = 1
    """Distillations behind it, that the trainings take in turn."""
    source_only: bool = False
    failed: Failure | None = None
    """Why its rows could not be had."""
    before: Callable[[Prepared, Recipe], None] = lambda target, recipe: None
    """Makes what its trainings of a target model need; all processes call it together."""
    label: str = ""
    """Its name for people, where that is of its own; empty: that of its method."""


@dataclass(frozen=True)
class Trained:
    """A training that is done."""

    theta: Tensor
    recipe: Recipe
    """Its own: see `of_training`."""
    steps: int
    rows: int
    """Rows seen at least once."""
    tokens: int
    """Tokens of those."""
    seconds: float


def of_training(recipe: Recipe, training: Training) -> Recipe:
    """The recipe of one training; rows without an order of their own are always shuffled."""
    if not training.in_order:
        recipe = replace(recipe, shuffle=True)
    if training.learning_rate is not None:
        recipe = replace(recipe, learning_rate=training.learning_rate)
    recipe = replace(recipe, learning_rate=training.faster * recipe.learning_rate)
    if training.epochs is not None:
        recipe = replace(recipe, steps=0, epochs=training.epochs)
    return recipe


def train(
    prepared: Prepared, recipe: Recipe, training: Training, seed: int, tick: Tick | None = None
) -> Trained:
    """Do one training of a row, from the initial values and in the order of its seed.

    Raises:
        UserError: the warm-up keeps it at a learning rate of 0.
    """
    recipe, data = of_training(recipe, training), training.data
    began = time.perf_counter()
    if data is None:
        return Trained(prepared.model.zero_theta(), recipe, 0, 0, 0, 0.0)
    steps = training.steps or recipe.total_steps(len(data.rows))
    theta = train_student(
        prepared.model,
        recipe,
        data,
        seed,
        vectors=training.vectors,
        steps=training.steps,
        tick=tick,
    )
    taken = time.perf_counter() - began
    return Trained(theta, recipe, steps, *visited(data, recipe, steps, seed), taken)
