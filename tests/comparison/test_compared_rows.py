"""What a comparison trains on: labels, orders, other prompts, shared rows, other data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_grid import grid

import nacd
from nacd.commands.compare import compare
from nacd.comparison.rowset import Training, encoded, of_training
from nacd.comparison.transfer import other_prompts, surviving_boundaries
from nacd.config import DataConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, make_template, read_examples
from nacd.distillation import learn as learn_module
from nacd.distillation import stages as stages_module
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import prepare
from nacd.terminal.progress import Progress
from tiny import tiny_tokenizer

Folder = Callable[[str], Path]
QUIET = Progress(quiet=True)


def test_small_sets_are_labelled_as_they_are_exported(tiny_folder: Folder, rows: Path) -> None:
    prepared = prepare(
        ModelConfig(model=str(tiny_folder("llama"))), DataConfig(data=str(rows)), QUIET.say
    )
    turns = [("user", "a fox"), ("assistant", "red"), ("user", "a sun"), ("assistant", "brown")]
    example = Example(tuple(Message(role, text) for role, text in turns), "chat.jsonl:1")
    chat = replace(prepared, template=make_template("chat", prepared.model.tokenizer, [example]))
    (row,) = encoded([example], chat).rows
    assert row == chat.template.encode(example, turns="last")
    assert row.response != chat.template.encode(example).response


def test_only_rows_of_a_distillation_keep_their_order() -> None:
    recipe = Recipe(shuffle=False)
    assert of_training(recipe, Training(None)).shuffle
    assert of_training(recipe, Training(None, epochs=2.0)).shuffle
    assert not of_training(recipe, Training(None, in_order=True)).shuffle
    assert of_training(Recipe(), Training(None, in_order=True)).shuffle


def test_rows_shared_with_the_report_are_named(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "held.jsonl"
    copies.write_text("".join(rows.read_text().splitlines(keepends=True)[:12]))
    data = DataConfig(data=str(rows), heldout=str(copies), target_rows=6)
    config = replace(
        grid(tiny_folder("llama"), rows, tmp_path / "grid", methods=("zero-shot",)), data=data
    )
    result = compare(config, progress=QUIET)
    assert result.overlap
    assert all("rows.jsonl" in row["train"] and row["report"] for row in result.overlap)


def test_text_equal_to_the_seeds_is_not_trained_twice(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    outer = OuterLoopConfig(outer_steps=0, engine="exact")
    config = grid(
        tiny_folder("llama"), rows, tmp_path / "grid", methods=("seeds", "text"), outer=outer
    )
    seeds, text = compare(config, progress=QUIET).table
    assert text["report_nll"] == seeds["report_nll"]
    assert text["training_seconds"] == seeds["training_seconds"], "taken over, not made again"


def test_boundaries_that_survive() -> None:
    class Letters:
        def __call__(self, text: str, **_: object) -> dict[str, object]:
            return {"offset_mapping": [(i, i + 1) for i in range(len(text))]}

    class Words:
        def __call__(self, text: str, **_: object) -> dict[str, object]:
            ends = [i for i, letter in enumerate(text) if letter == " "] + [len(text)]
            return {"offset_mapping": [*zip([0, *ends[:-1]], ends, strict=True)]}

    text = ["the red fox"]
    assert surviving_boundaries(text, Words(), Letters()) == 1.0
    assert surviving_boundaries(text, Letters(), Words()) == pytest.approx(2 / 10)
    assert surviving_boundaries(["a"], Letters(), Letters()) is None
    real = tiny_tokenizer("opt")
    assert surviving_boundaries(["a plant needs water"], real, real) == 1.0


def test_every_response_gets_another_prompt(rows: Path) -> None:
    examples = read_examples(rows)[:7]
    mixed = other_prompts(examples, 0)
    assert [e.response for e in mixed] == [e.response for e in examples]
    assert sorted(e.prompt for e in mixed) == sorted(e.prompt for e in examples)
    assert all(a.prompt != b.prompt for a, b in zip(mixed, examples, strict=True))
    assert [e.prompt for e in other_prompts(examples, 1)] != [e.prompt for e in mixed]


def test_learning_looks_at_development_rows_alone(
    tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = grid(tiny_folder("llama"), rows, tmp_path / "g")
    config = small.distillation(small.sizes[0], 0)
    development = prepare(config.model, config.data).development.rows
    seen: list[list[Any]] = []
    for module in (learn_module, stages_module):
        real = module.mean_nll
        monkeypatch.setattr(
            module, "mean_nll", lambda m, t, r, real=real: seen.append([*r]) or real(m, t, r)
        )
    nacd.distill(
        replace(config, out=tmp_path / "r", tune_rates=(1e-3, 2e-3), compare=()), progress=QUIET
    )
    assert len(seen) > 2
    assert all(r == [*development] for r in seen)


def test_a_row_alone_has_no_others_prompt(tiny_folder: Folder, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one row has no other's prompt to take; raise --budgets"):
        other_prompts(read_examples(rows)[:1], 0)
    outer = OuterLoopConfig(outer_steps=0, engine="exact")
    methods = ("seeds", "other-prompts")
    config = grid(tiny_folder("llama"), rows, tmp_path / "g", methods=methods, outer=outer)
    table = compare(replace(config, budgets=("1",)), progress=QUIET).table
    assert "failed" not in table[0]
    assert "one row has no other's prompt" in table[1]["why"]


def test_other_data_is_read_without_what_is_to_be_ignored(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"instruction": "a", "output": "b", "tools": "[1]"}))
    config = replace(grid(tmp_path, rows, tmp_path / "grid"), elsewhere=str(other))
    with pytest.raises(UserError, match=r"other\.jsonl:1 has `tools`"):
        compare(config, progress=QUIET)

    def read(_: DataConfig) -> None:
        raise InterruptedError("the other data is read")

    monkeypatch.setattr("nacd.commands.compare.read_splits", read)
    config = replace(config, data=replace(config.data, ignore_columns=("tools",)))
    with pytest.raises(InterruptedError):
        compare(config, progress=QUIET)
