"""Which rows the ladder has, and what each is trained with."""

from __future__ import annotations

import math

import pytest
import torch

from nacd.config import LADDER
from nacd.data import Encoded
from nacd.errors import UserError
from nacd.ladder import Entry, entries_for
from nacd.recipe import Recipe
from nacd.student import plain, tune_rate

ROWS = plain([Encoded((1, 2, 3), (False, True, True), (0, 1))] * 4, pad_id=0)


def entries(recipe: Recipe) -> dict[str, Entry]:
    found = entries_for(
        LADDER,
        draws=lambda _: ROWS,
        seeds=ROWS,
        learnable=ROWS,
        allowed=torch.ones(4, dtype=torch.bool),
        soft=torch.zeros(0, 2),
        soft_rate=recipe.learning_rate,
        text=ROWS,
        text_changed=0.1,
        text_rate=recipe.learning_rate,
        last=ROWS,
        last_changed=0.1,
        last_rate=recipe.learning_rate,
        full=ROWS,
        recipe=recipe,
        full_epochs=3.0,
    )
    return {entry.name: entry for entry in found}


@pytest.mark.parametrize("shuffle", [True, False])
def test_learned_rows_and_their_seeds_alone_keep_an_order(shuffle: bool) -> None:
    recipe = Recipe(batch_size=2, shuffle=shuffle)
    found = entries(recipe)
    shuffled = {name for name, entry in found.items() if (entry.recipe or recipe).shuffle}
    in_order = {"seeds", "random-prompts", "soft", "text"}
    if shuffle:
        assert shuffled == {*LADDER, "full-equal-steps"}
    else:
        shown = {*LADDER, "full-equal-steps", "seeds-shuffled", "text-shuffled"}
        assert set(found) == shown
        assert shuffled == shown - in_order - {"zero-shot"}
    assert found["full"].recipe is not None
    assert found["full"].recipe.epochs == 3.0


def test_a_rate_at_which_training_diverges_is_not_the_best() -> None:
    scores = {1e-2: math.nan, 1e-3: 2.5, 1e-4: 2.6}
    assert tune_rate(list(scores), scores.__getitem__).learning_rate == 1e-3
    with pytest.raises(UserError, match=r"--tune-rates 0.1 1: training diverges at every one"):
        tune_rate([0.1, 1.0], lambda _: math.inf)
