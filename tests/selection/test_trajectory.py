"""The worth of real rows: planted good rows are found, dealing is fair, a killed run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nacd.config import DataConfig, SelectionConfig
from nacd.config.budget import parse_budget
from nacd.config.recipe import Recipe
from nacd.data import Batch, Example, Message, Splits
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import Prepared, prepare
from nacd.selection import trajectory as module
from nacd.selection.method import Task
from nacd.selection.trajectory import deal, trajectory
from nacd.terminal.progress import Progress


def example(number: int, response: str) -> Example:
    return Example(
        (Message("user", f"what is the colour of the {number}"), Message("assistant", response)),
        f"rows:{number}",
    )


@pytest.fixture(scope="module")
def prepared(tiny_folder: Callable[[str], Path]) -> Prepared:
    """Even rows answer as the target rows do, odd ones otherwise."""
    train = [example(i, "the fox" if i % 2 == 0 else "1234 5678") for i in range(40)]
    held = [example(100 + i, "the fox") for i in range(8)]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    splits = Splits(train, held, held, held)
    return prepare(model, DataConfig(data="rows", template="qa"), splits=splits)


def task(prepared: Prepared, folder: Path, **changes: object) -> Task:
    made = Task(
        prepared=prepared,
        recipe=Recipe(batch_size=4, epochs=2, learning_rate=3e-3),
        config=SelectionConfig(),
        seed=0,
        folder=folder,
        progress=Progress(quiet=True),
        budget=parse_budget("8"),
    )
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def test_rows_that_help_come_first(prepared: Prepared, tmp_path: Path) -> None:
    ranking = trajectory(task(prepared, tmp_path))
    assert sorted(ranking.order) == [*range(40)]
    assert ranking.scores is not None
    first = [*ranking.order][:20]
    assert sum(i % 2 == 0 for i in first) >= 19
    assert list(ranking.scores[first]) == sorted(ranking.scores[first], reverse=True)
    assert ranking.flops > 0


def test_rows_that_raise_the_loss_are_counted(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        Progress, "say", lambda _, line: said.append(line) if "--" in line else None
    )
    worths = iter(range(1_000_000))

    def fake(_: object, __: object, batches: list[Batch], *___: object, **____: object) -> Any:
        found = [torch.tensor([next(worths) % 8 - 2.5 for _ in b.ids]) for b in batches]
        return SimpleNamespace(value=0.0), found

    monkeypatch.setattr(module, "weight_gradient", fake)
    recipe = Recipe(batch_size=4, epochs=1)
    config = SelectionConfig(weight_passes=1)  # five groups of eight: three of each lower the loss
    trajectory(task(prepared, tmp_path / "a", config=config, recipe=recipe))
    assert not said
    whole = task(prepared, tmp_path / "b", config=config, recipe=recipe, budget=parse_budget("40"))
    trajectory(whole)
    line = "25 of the best 40 rows raise the target loss by their weight; a smaller --budget"
    assert len(said) == 1
    assert line in said[0]
    trajectory(whole)  # nothing is weighed again, and it is said again
    assert len(said) == 2


def test_rows_are_weighed_as_they_will_be_trained_on(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last turn of a conversation is the only label."""
    talk = [
        replace(row, messages=(Message("user", "hi"), Message("assistant", "the"), *row.messages))
        for row in (example(i, "the fox") for i in range(8))
    ]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    splits = Splits(talk, talk, talk, talk)
    config = DataConfig(data="rows", template="chat")
    several = prepare(model, config, splits=splits)
    labels: set[int] = set()

    def fake(_: object, __: object, batches: list[Batch], *___: object, **____: object) -> Any:
        labels.update(b.row(k).response_tokens for b in batches for k in range(len(b.ids)))
        return SimpleNamespace(value=0.0), [torch.zeros(len(b.ids)) for b in batches]

    monkeypatch.setattr(module, "weight_gradient", fake)
    trajectory(task(several, tmp_path))
    last = several.template.encode(talk[0], turns="last").response_tokens
    assert labels == {last}
    assert last < several.train.rows[0].response_tokens


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trajectory(task(prepared, tmp_path / "whole"))
    calls = Counter[str]()
    real = module.weight_gradient

    def dies(*args: object, **kwargs: object) -> object:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "weight_gradient", dies)
    with pytest.raises(KeyboardInterrupt):
        trajectory(task(prepared, tmp_path / "half"))
    again = trajectory(task(prepared, tmp_path / "half"))
    assert calls["n"] == 4 + 10 - 3
    assert whole.scores is not None
    assert again.scores is not None
    np.testing.assert_array_equal(whole.scores, again.scores)
    assert whole.flops == again.flops


def test_other_settings_are_not_mixed_in(prepared: Prepared, tmp_path: Path) -> None:
    trajectory(task(prepared, tmp_path))
    other = task(prepared, tmp_path, budget=parse_budget("10"))
    with pytest.raises(UserError, match=r"weights\.safetensors: made with other settings"):
        trajectory(other)


@pytest.mark.parametrize(("rows", "size"), [(40, 8), (41, 8), (5, 8), (17, 1), (16, 1), (9, 2)])
def test_every_row_is_dealt_once_a_pass(rows: int, size: int) -> None:
    groups = deal(rows, size, 3, seed=1)
    assert Counter(i for group in groups for i in group) == dict.fromkeys(range(rows), 3)
    sizes = {len(group) for group in groups}
    assert max(sizes) <= max(size, 3)
    assert min(sizes) >= 2, "the worth of a row alone could not be told from its group's"
    assert max(sizes) - min(sizes) <= 1
    assert groups != deal(rows, size, 3, seed=2)


def test_a_training_that_diverges_is_said(prepared: Prepared, tmp_path: Path) -> None:
    asked = task(prepared, tmp_path)
    hot = replace(asked, recipe=replace(asked.recipe, learning_rate=1e30, clip=0.0))
    with pytest.raises(UserError, match=r"group 1 of \d+ diverges at --learning-rate 1e\+30"):
        trajectory(hot)


def test_trajectory_scores(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    made = []

    def fake(_: object, __: object, batches: list[Batch], *___: object, **____: object) -> Any:
        found = [torch.from_numpy(draw.normal(size=len(b.ids))) for b in batches]
        made.append((batches, found))
        return SimpleNamespace(value=0.0), found

    monkeypatch.setattr(module, "weight_gradient", fake)
    scores = trajectory(task(prepared, tmp_path)).scores
    expected = np.zeros(40)
    which = {r.ids: i for i, r in enumerate(prepared.train.rows)}
    passes = task(prepared, tmp_path).config.weight_passes
    for batches, found in made:
        w: dict[int, float] = {}
        for b, d in zip(batches, found, strict=True):
            for k in range(len(b.ids)):
                i = which[tuple(b.row(k).ids[0].tolist())]
                w[i] = w.get(i, 0.0) - float(d[k])
        z = np.asarray(list(w.values()))
        z = (z - z.mean()) / z.std()
        for i, x in zip(w, z, strict=True):
            expected[i] += x / passes
    assert scores is not None
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_a_budget_of_one_row_is_a_choice_too(prepared: Prepared, tmp_path: Path) -> None:
    """A row weighed alone is as good as its group's mean: all would be worth 0."""
    recipe = Recipe(batch_size=2, epochs=3, learning_rate=3e-3)
    ranking = trajectory(task(prepared, tmp_path, budget=parse_budget("1"), recipe=recipe))
    assert ranking.scores is not None
    assert (ranking.scores != 0).any()
    assert sum(i % 2 == 0 for i in [*ranking.order][:10]) >= 9


def test_weights_of_another_model_are_not_gone_on_with(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(task(prepared, tmp_path))
    monkeypatch.setattr(Task, "tokens_digest", lambda _: "of another")
    with pytest.raises(UserError, match=r"weights\.safetensors: made with other settings"):
        trajectory(task(prepared, tmp_path))


def test_what_is_weighed_is_told_apart(prepared: Prepared, tmp_path: Path) -> None:
    """By the model's LoRA and number format, and by ids and labels of the rows."""
    known = task(prepared, tmp_path).tokens_digest()
    assert known == task(prepared, tmp_path / "b", seed=3).tokens_digest()
    row = prepared.train.rows[0]
    relabelled = replace(row, response=(False, *row.response[:-1]))
    train = replace(prepared.train, rows=(relabelled, *prepared.train.rows[1:]))
    others = [replace(prepared, train=train), replace(prepared, target=prepared.train)]
    digests = [task(other, tmp_path).tokens_digest() for other in others]
    assert len({known, *digests}) == 3
