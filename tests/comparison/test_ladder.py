"""Which rows the ladder has, and what each is trained with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nacd.comparison import ladder
from nacd.comparison.ladder import Entry, climb, entries_for, lines
from nacd.config import LADDER
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.pseudo import make_pseudo_data
from nacd.errors import UserError
from nacd.model.prepare import Part
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import plain, tune_rate

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
        soft_step=2,
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


def climbed(
    folder: Path, given: list[Entry], nll: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], int]:
    """The table of trainings that come out with these losses, and how many were made."""
    made = iter(nll)
    count = 0

    def measure(_: Any, used: Recipe, entry: Entry, *__: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        value = next(made)
        return {
            "method": entry.name,
            "seed": count,
            "report_nll": value,
            "rows": 4,
            "tokens": 12,
            "steps": count,
            "learning_rate": used.learning_rate,
            "training_seconds": 1.0,
            "row_nll": [value],
        }

    monkeypatch.setattr(ladder, "_measure", measure)
    model: Any = None
    quiet = Progress(quiet=True)
    return climb(model, Recipe(), given, Part((), ()), 2, RunFolder(folder), quiet), count


def test_a_training_of_other_rows_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ids, other labels, other vectors or slots, another learning rate."""
    one, two = Encoded((1, 2, 3), (False, True, True), (0, 1)), (False, False, True)
    data = make_pseudo_data([one] * 4, "prompt", 0)
    soft = torch.zeros(4, 2)
    entry = Entry("soft", "NACD soft", lambda _: data, vectors=soft)
    relabelled = [replace(one, response=two), *[one] * 3]
    others = [
        replace(entry, data=lambda _: make_pseudo_data(relabelled, "prompt", 0)),
        replace(entry, data=lambda _: data.with_ids(data.ids + 1)),
        replace(entry, vectors=soft + 1),
        replace(entry, recipe=Recipe(learning_rate=2e-3)),
    ]
    for number, other in enumerate(others):
        place = tmp_path / str(number)
        assert climbed(place, [entry], [1.0, 2.0], monkeypatch)[1] == 2
        assert climbed(place, [entry], [], monkeypatch)[1] == 0
        table, made = climbed(place, [other], [3.0, 4.0], monkeypatch)
        assert (table[0]["report_nll"], made) == (3.5, 2)


def test_a_row_of_which_a_training_diverged_has_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [Entry(name, name, lambda _: ROWS) for name in ("seeds", "text", "soft")]
    nll = [2.0, 2.2, 1.0, math.nan, 1.8, 2.1]
    table, _ = climbed(tmp_path, given, nll, monkeypatch)
    found = {row["method"]: row for row in table}
    assert (found["text"]["report_nll"], found["text"]["diverged"]) == (None, 1)
    assert "minus_seeds" not in found["text"]
    assert found["soft"]["minus_seeds"] == pytest.approx(-0.15)
    assert climbed(tmp_path, given, [], monkeypatch)[0] == table, "read as it was made"
    shown = lines(table)
    assert max(map(len, shown)) <= 80
    assert [line.split()[1] for line in shown[2:] if line[0] != " "] == ["2.100", "none", "1.950"]
    assert "1 of its 2 trainings diverged" in shown[4]
    lost = climbed(tmp_path / "b", given, [math.nan, 2.2, 1.0, 1.0, 1.0, 1.0], monkeypatch)[0]
    assert not any("minus_seeds" in row for row in lost)


def test_steps_of_draws_of_several_sizes_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [Entry("random", "random rows", lambda _: ROWS)]
    table, _ = climbed(tmp_path, given, [1.0, 1.0], monkeypatch)
    assert table[0]["steps"] == 2  # of 1 and 2, rounded to even
