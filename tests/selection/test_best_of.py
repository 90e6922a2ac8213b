"""The best of several draws: judged by what training on each leads to, kept in its own order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nacd.config import DataConfig, DistillConfig, SelectionConfig
from nacd.config.budget import parse_budget
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, Splits
from nacd.data.rows import Rows
from nacd.distillation.stages import chosen_rows
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import Part, Prepared, prepare
from nacd.selection import best_of as module
from nacd.selection import choose
from nacd.selection import judges as judges_module
from nacd.selection.best_of import best_of
from nacd.selection.filters import stratified
from nacd.selection.method import Task
from nacd.selection.random import random_order
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import LEARNING_SEED, mean_nll, train_student

QUIET = Progress(quiet=True)
RECIPE = Recipe(batch_size=2, epochs=3, learning_rate=3e-3, shuffle=False)


@pytest.fixture(scope="module")
def prepared(tiny_folder: Callable[[str], Path]) -> Prepared:
    """Every third row answers as the target rows do."""

    def example(number: int, response: str) -> Example:
        words = Message("user", f"what is the colour of the {number}")
        return Example((words, Message("assistant", response)), f"rows:{number}")

    train = [example(i, "the fox" if i % 3 == 0 else "1234 5678") for i in range(30)]
    held = [example(100 + i, "the fox") for i in range(6)]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    splits = Splits(train, held, held, held)
    return prepare(model, DataConfig(data="rows", template="qa"), splits=splits)


def task(prepared: Prepared, folder: Path, **changes: Any) -> Task:
    config = SelectionConfig(tries=5, judge=changes.pop("judge", "target"))
    return Task(
        prepared,
        RECIPE,
        config,
        0,
        folder,
        QUIET,
        parse_budget(changes.pop("budget", "6")),
        **changes,
    )


def test_the_best_draw_in_its_own_order(prepared: Prepared, tmp_path: Path) -> None:
    ranking = best_of(task(prepared, tmp_path))
    order = [*ranking.order]
    assert sorted(order) == [*range(30)]
    pad = prepared.model.tokenizer.pad_token_id
    losses = {}
    for number in range(5):
        drawn = tuple(random_order(30, 1_000_003 * number)[:6])
        data = Rows.of([prepared.train.rows[i] for i in drawn], pad)
        theta = train_student(prepared.model, RECIPE, data, LEARNING_SEED + number)
        losses[drawn] = mean_nll(prepared.model, theta, prepared.target.rows)
    assert tuple(order[:6]) == min(losses, key=lambda drawn: losses[drawn])
    assert ranking.flops > 0
    # as starting rows of a distillation they stay in that order
    config = DistillConfig(out=tmp_path / "run", budget="6", start_by="best-of", recipe=RECIPE)
    config = replace(config, selection=SelectionConfig(tries=5, judge="target"))
    seeds = chosen_rows(config, prepared, RunFolder(tmp_path / "run"), QUIET)
    assert seeds == order[:6] == choose(task(prepared, tmp_path), "best-of").indices
    # without a target file, and nothing said, training rows judge
    config = replace(config, out=tmp_path / "other", selection=SelectionConfig(tries=5))
    seeds = chosen_rows(config, prepared, RunFolder(tmp_path / "other"), QUIET)
    judged = choose(task(prepared, tmp_path / "judged", judge="train"), "best-of").indices
    assert seeds == judged != order[:6]
    config = replace(config, out=tmp_path / "third", data=DataConfig(data="rows", target="file"))
    assert chosen_rows(config, prepared, RunFolder(tmp_path / "third"), QUIET) == order[:6]


def test_training_rows_set_aside_judge_every_draw(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prepared.train.rows
    judged: list[list[int]] = []
    drawn: list[list[int]] = []

    def numbers(of: Any) -> list[int]:
        return [rows.index(one) for one in of]

    def train(_: Any, __: Any, data: Any, ___: Any) -> None:
        drawn.append(numbers(data.rows))

    def judge(_: Any, __: Any, judges: Any) -> float:
        judged.append(numbers(judges))
        return [2.0, 3.0, 1.0, 2.0, 2.5][len(judged) - 1]

    monkeypatch.setattr(module, "train_student", train)
    monkeypatch.setattr(module, "mean_nll", judge)
    order = list(best_of(task(prepared, tmp_path / "a", judge="train")).order)
    own = random_order(30, judges_module.JUDGES_SEED)[:7]  # at most a quarter
    assert judged == [own] * 5
    free = [[i for i in random_order(30, 1_000_003 * n) if i not in own][:6] for n in range(5)]
    assert drawn == free
    assert order[:6] == free[2]
    assert sorted(order) == [*range(30)]
    judged.clear()
    monkeypatch.setattr(judges_module, "JUDGES", 3)
    best_of(task(prepared, tmp_path / "b", judge="train", budget="27"))
    assert judged == [own[:3]] * 5
    with pytest.raises(UserError, match=r"28 of 30 training rows, and 3 are set aside to judge by"):
        best_of(task(prepared, tmp_path / "c", judge="train", budget="28"))
    with pytest.raises(UserError, match=r"draws\.json: made with other settings"):
        best_of(task(prepared, tmp_path / "a", judge="target"))


def test_draws_are_trained_on_as_they_will_be(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last turn of a conversation is the only label."""
    said = ("user", "hi"), ("assistant", "the"), ("user", "what is it"), ("assistant", "the fox")
    talk = [Example(tuple(Message(*turn) for turn in said), f"rows:{i}") for i in range(8)]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    data = DataConfig(data="rows", template="chat")
    several = prepare(model, data, splits=Splits(talk, talk, talk, talk))
    trained: list[int] = []

    def train(_: Any, __: Any, data: Any, ___: Any) -> None:
        trained.extend(row.response_tokens for row in data.rows)

    monkeypatch.setattr(module, "train_student", train)
    monkeypatch.setattr(module, "mean_nll", lambda *_: 1.0)
    best_of(task(several, tmp_path))
    last = several.template.encode(talk[0], turns="last").response_tokens
    assert trained == [last] * 30
    assert last < several.train.rows[0].response_tokens


def test_what_is_tried_is_what_is_chosen(prepared: Prepared, tmp_path: Path) -> None:
    """Filters come before training: every draw holds the groups in proportion."""
    part = prepared.train
    examples = [replace(e, group="ab"[i % 3 > 0]) for i, e in enumerate(part.examples)]
    grouped = replace(prepared, train=replace(part, examples=tuple(examples)))
    asked = task(grouped, tmp_path)
    asked = replace(asked, config=replace(asked.config, stratify=True))
    chosen = choose(asked, "best-of").indices
    assert sum(i % 3 == 0 for i in chosen) == 2
    pad = prepared.model.tokenizer.pad_token_id
    losses = []
    for number in range(5):
        queue = random_order(30, 1_000_003 * number)
        drawn = [*stratified(queue, [e.group for e in examples])][:6]
        data = Rows.of([part.rows[i] for i in drawn], pad)
        theta = train_student(prepared.model, RECIPE, data, LEARNING_SEED + number)
        losses.append((mean_nll(prepared.model, theta, prepared.target.rows), drawn))
    assert chosen == min(losses)[1]


def test_a_killed_run_goes_on_after_its_last_draw(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = best_of(task(prepared, tmp_path / "whole"))
    real, calls = module.train_student, []

    def dies(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "train_student", dies)
    with pytest.raises(KeyboardInterrupt):
        best_of(task(prepared, tmp_path / "killed"))
    again = best_of(task(prepared, tmp_path / "killed"))
    assert len(calls) == 2 + 1 + 3
    assert (again.order, again.flops) == (whole.order, whole.flops)
    with pytest.raises(UserError, match=r"draws\.json: made with other settings"):
        best_of(task(prepared, tmp_path / "killed", budget="7"))


def test_a_draw_that_diverges_is_not_the_best(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([math.nan, 3.0, 2.0, math.inf, 2.5])
    monkeypatch.setattr(module, "train_student", lambda *_: None)
    monkeypatch.setattr(module, "mean_nll", lambda *_: next(losses))
    asked = task(prepared, tmp_path / "some")
    order = [*best_of(asked).order]
    assert order[:6] == random_order(len(prepared.train), asked.seed + 1_000_003 * 2)[:6]
    losses = iter([math.nan] * 5)
    with pytest.raises(UserError, match=r"best-of: training diverges on every draw at --learning"):
        best_of(task(prepared, tmp_path / "none"))


def test_a_copy_of_a_judge_is_in_no_draw(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = prepared.train
    twice = Part([*train.examples] * 2, [*train.rows] * 2)
    drawn: list[Any] = []
    monkeypatch.setattr(module, "train_student", lambda _, __, data, ___: drawn.extend(data.rows))
    monkeypatch.setattr(module, "mean_nll", lambda *_: 1.0)
    asked = task(replace(prepared, train=twice), tmp_path, judge="train", budget="20")
    judges, aside = judges_module.judges_of(asked, "best-of")
    assert len(judges) == 15
    assert len(aside) > 15
    best_of(asked)
    assert len(drawn) == 5 * 20
    assert not {row.ids for row in drawn} & {row.ids for row in judges}
    with pytest.raises(UserError, match=rf"takes 59 of 60 .* and {len(aside)} are set aside"):
        best_of(
            task(
                replace(prepared, train=twice),
                tmp_path / "b",
                judge="train",
                budget="59",
            )
        )


def test_a_budget_of_tokens_is_not_filled_up_with_rows_that_were_not_tried(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a draw ended at a long row, and a short one would still fit."""
    lengths = [len(row) for row in prepared.train.rows]
    drawn: list[list[int]] = []

    def train(_: Any, __: Any, data: Any, ___: Any) -> None:
        drawn.append([prepared.train.rows.index(row) for row in data.rows])

    monkeypatch.setattr(module, "train_student", train)
    monkeypatch.setattr(module, "mean_nll", lambda *_: float(len(drawn) != 3))
    budget = 2 * max(lengths) + min(lengths)
    left = []
    for seed in range(8):
        drawn.clear()
        asked = replace(task(prepared, tmp_path / str(seed), budget=f"{budget}t"), seed=seed)
        assert choose(asked, "best-of").indices == drawn[2]
        left.append(budget - sum(lengths[i] for i in drawn[2]))
    assert max(left) >= min(lengths)


def test_draws_of_another_model_are_not_gone_on_with(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = task(prepared, tmp_path)
    best_of(asked)
    monkeypatch.setattr(Task, "tokens_digest", lambda _: "of another")
    with pytest.raises(UserError, match=r"draws\.json: made with other settings"):
        best_of(asked)
    file = tmp_path / "draws.json"
    older = json.loads(file.read_text())
    del older["tokens"], older["seal"]
    file.write_text(json.dumps(older))
    best_of(asked)


def test_a_draw_that_diverges_is_never_the_best(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is judged, and when it is read again."""
    losses = iter([math.nan, 2.0, math.inf, 1.0, math.nan])
    monkeypatch.setattr(module, "train_student", lambda *_: None)
    monkeypatch.setattr(module, "mean_nll", lambda *_: next(losses))
    first = choose(task(prepared, tmp_path), "best-of").indices
    assert first == random_order(30, 3 * 1_000_003)[:6]
    assert json.loads((tmp_path / "draws.json").read_text())["losses"] == [None, 2, None, 1, None]
    assert choose(task(prepared, tmp_path), "best-of").indices == first
