"""Which rows the table of a distillation has, and what each is trained with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nacd.comparison.grid import Grid
from nacd.comparison.rowset import RowSet, Training, of_training
from nacd.comparison.rowsets import beside, rowsets
from nacd.comparison.table import summarise
from nacd.comparison.text import lines
from nacd.config import TABLE_ROWS, DistillConfig
from nacd.config.budget import parse_budget
from nacd.config.compare import CompareConfig, one_cell
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.rows import Rows, learnable_rows
from nacd.errors import UserError
from nacd.model.prepare import Part
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import tune_rate

ROWS = Rows.of([Encoded((1, 2, 3), (False, True, True), (0, 1))] * 4, pad_id=0)
QUIET = Progress(quiet=True)


def stub(recipe: Recipe, folder: Path) -> Any:
    """The outcome of a distillation whose text is of its last check."""
    (folder / "seeds.json").write_text('{"method": "random", "flops": 0.0}')
    text = [SimpleNamespace(encoded=row) for row in ROWS.rows]
    return SimpleNamespace(
        recipe=recipe,
        text=text,
        folder=SimpleNamespace(path=folder),
        clock=SimpleNamespace(stages=[]),
        config=DistillConfig(),
        distiller=SimpleNamespace(text=lambda _: text),
        learned=SimpleNamespace(last_ids=None, soft_step=2, metrics=[]),
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_learned_rows_and_their_seeds_alone_keep_an_order(
    shuffle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(batch_size=2, shuffle=shuffle)
    outcome = stub(recipe, tmp_path)
    example = SimpleNamespace(prompt="a")
    outcome.text[:] = [SimpleNamespace(encoded=r, example=example) for r in ROWS.rows]
    outcome.changed = 0.1
    outcome.starts = SimpleNamespace(examples=(example,) * 4, pseudo=ROWS, rows=ROWS.rows)
    outcome.learned.soft, outcome.learned.soft_learning_rate = torch.zeros(0, 2), 5e-4
    outcome.learned.learning_rate = 5e-4
    monkeypatch.setattr("nacd.comparison.distilled._learning_flops", lambda _: 0.0)
    monkeypatch.setattr("nacd.comparison.distilled.encoded", lambda *_: ROWS)
    monkeypatch.setattr("nacd.comparison.rowsets.encoded", lambda *_: ROWS)
    monkeypatch.setattr("nacd.comparison.distilled.surviving_boundaries", lambda *_: 1.0)
    monkeypatch.setattr("nacd.comparison.distilled.choosable", lambda *_: torch.ones(4).bool())
    model = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0), table=ROWS.rows, device=None)
    part = Part((example,) * 4, ROWS.rows)  # pyright: ignore[reportArgumentType]
    source: Any = SimpleNamespace(model=model, train=part)
    config = replace(DistillConfig(), full_epochs=3.0, budget="4")
    one = one_cell(config, recipe, beside(outcome, TABLE_ROWS))
    sets = rowsets(
        one, parse_budget("4"), source, recipe, RunFolder(tmp_path), QUIET, lambda: [outcome]
    )
    found = {s.method: of_training(recipe, s.training(source, 0)) for s in sets}
    shuffled = {name for name, own in found.items() if own.shuffle}
    in_order = {"seeds", "random-prompts", "soft", "text"}
    if shuffle:
        assert shuffled == {*TABLE_ROWS, "full-equal-steps"}
    else:
        shown = {*TABLE_ROWS, "full-equal-steps", "seeds-shuffled", "text-shuffled"}
        assert set(found) == shown
        assert shuffled == shown - in_order
    assert found["full"].epochs == 3.0


def test_a_rate_at_which_training_diverges_is_not_the_best() -> None:
    scores = {1e-2: math.nan, 1e-3: 2.5, 1e-4: 2.6}
    assert tune_rate(list(scores), scores.__getitem__).learning_rate == 1e-3
    with pytest.raises(UserError, match=r"--tune-rates 0.1 1: training diverges at every one"):
        tune_rate([0.1, 1.0], lambda _: math.inf)


def measured(
    folder: Path, given: list[RowSet], nll: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], int]:
    """The table of trainings that come out with these losses, and how many were made."""
    made = iter(nll)
    count = 0

    def measure(self: Grid, training: Training, *_: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        value = next(made)
        return {
            "report_nll": value,
            "rows": 4,
            "tokens": 12,
            "steps": count,
            "learning_rate": of_training(self.recipe, training).learning_rate,
            "training_seconds": 1.0,
            "row_nll": [value],
            "row_tokens": [1],
        }

    monkeypatch.setattr(Grid, "_measure", measure)
    prepared: Any = SimpleNamespace(report=Part((), ()))
    config = CompareConfig()
    grid = Grid(config, RunFolder(folder), prepared, "m", parse_budget("4"), Recipe(), alone=True)
    cells: list[dict[str, Any]] = []
    grid.run(given, QUIET, cells.extend)
    return summarise(cells), count


def test_a_training_of_other_rows_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ids, other labels, other vectors or slots, another learning rate."""
    one, two = Encoded((1, 2, 3), (False, True, True), (0, 1)), (False, False, True)
    data = learnable_rows([one] * 4, "prompt", 0)
    soft = torch.zeros(4, 2)
    given = Training(data, vectors=soft)
    relabelled = [replace(one, response=two), *[one] * 3]
    others = [
        replace(given, data=learnable_rows(relabelled, "prompt", 0)),
        replace(given, data=data.with_ids(data.ids + 1)),
        replace(given, vectors=soft + 1),
        replace(given, learning_rate=2e-3),
    ]

    def row(training: Training) -> list[RowSet]:
        return [RowSet("soft", lambda _, __: training, 2)]

    for number, other in enumerate(others):
        place = tmp_path / str(number)
        assert measured(place, row(given), [1.0, 2.0], monkeypatch)[1] == 2
        assert measured(place, row(given), [], monkeypatch)[1] == 0
        table, made = measured(place, row(other), [3.0, 4.0], monkeypatch)
        assert (table[0]["report_nll"], made) == (3.5, 2)


def test_a_row_of_which_a_training_diverged_has_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("seeds", "text", "soft")
    given = [RowSet(name, lambda _, __: Training(ROWS), 2) for name in names]
    nll = [2.0, 2.2, 1.0, math.nan, 1.8, 2.1]
    table, _ = measured(tmp_path, given, nll, monkeypatch)
    found = {row["method"]: row for row in table}
    assert "report_nll" not in found["text"]
    assert found["text"]["diverged"] == 1
    assert "minus_seeds" not in found["text"]
    assert found["soft"]["minus_seeds"]["mean"] == pytest.approx(-0.15)
    assert measured(tmp_path, given, [], monkeypatch)[0] == table, "read as it was made"
    shown = lines(table)
    assert max(map(len, shown)) <= 80
    figures = {line.split()[0]: line.split()[1] for line in shown[3:6]}
    assert figures == {"seeds": "2.100", "soft": "1.950", "text": "failed:"}
    lost = measured(tmp_path / "b", given, [math.nan, 2.2, 1.0, 1.0, 1.0, 1.0], monkeypatch)[0]
    assert not any(row.get("minus_seeds") for row in lost)


def test_steps_of_draws_of_several_sizes_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [RowSet("random", lambda _, __: Training(ROWS), 2)]
    table, _ = measured(tmp_path, given, [1.0, 1.0], monkeypatch)
    assert table[0]["steps"] == 2  # of 1 and 2, rounded to even
