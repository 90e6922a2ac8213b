"""Which rows each split is read from, and which flag an error names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacd.commands.target import EvaluateConfig, TrainConfig, evaluate, fine_tune
from nacd.config import DataConfig
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import prepare, read_splits


def rows(count: int, words: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"Number {i} " + "more " * words, "completion": "so"} for i in range(count)]


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def test_held_out_rows_of_the_hub_are_not_the_training_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, split))
        return datasets.Dataset.from_list(rows(30))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read_splits(DataConfig(data="own/er", heldout="own/er", target="own/er::test"))
    assert asked == [("own/er", "train"), ("own/er", "validation"), ("own/er", "test")]


@pytest.mark.parametrize("name", ["data", "target", "heldout"])
def test_rows_that_are_all_too_long_name_their_flag(
    name: str, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    files = {key: write(tmp_path / f"{key}.jsonl", rows(30)) for key in ("data", "heldout")}
    files[name] = write(tmp_path / "long.jsonl", rows(30, words=60))
    config = DataConfig(**files, max_tokens=32)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=rf"Raise --max-tokens, or give --{name} shorter rows"):
        prepare(ModelConfig(model=str(tiny_folder("gpt2"))), config)


def test_rows_that_are_held_out_and_looked_at_are_said(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    found = rows(40)
    files = {
        "data": write(tmp_path / "data.jsonl", found[:30]),
        "target": write(tmp_path / "target.jsonl", found[28:36]),
        "heldout": write(tmp_path / "held.jsonl", found[30:]),
    }
    config = DataConfig(**files)  # pyright: ignore[reportArgumentType]
    said: list[str] = []
    prepared = prepare(ModelConfig(model=str(tiny_folder("gpt2"))), config, said.append)
    held = {
        name: {e.digest for e in getattr(prepared, name).examples}
        for name in ("development", "report")
    }
    target = [e.digest for e in prepared.target.examples]
    expected = [
        f"{count} of 8 target rows are {name} rows too, word for word: figures on {name} rows may "
        "be too good."
        for name in held
        if (count := sum(digest in held[name] for digest in target))
    ]
    assert len(expected) == 2
    assert said == expected
    said.clear()
    prepare(
        ModelConfig(model=str(tiny_folder("gpt2"))), DataConfig(data=files["data"]), said.append
    )
    assert not said


@pytest.mark.parametrize("name", ["data", "target", "heldout"])
def test_what_is_to_be_ignored_and_how_answers_count_reaches_every_file(
    name: str, tmp_path: Path
) -> None:
    quiz = [
        {"question": f"{i}?", "choices": ["no", "yes", "neither"], "answer": 2} for i in range(30)
    ]
    files = {key: write(tmp_path / f"{key}.jsonl", quiz) for key in ("data", "heldout", "target")}
    plain: Any = {**files, "answers": "from-1"}
    splits = read_splits(DataConfig(**plain))
    assert {e.response for e in (*splits.train, *splits.target, *splits.report)} == {"yes"}
    write(tmp_path / f"{name}.jsonl", [row | {"tools": "[1]"} for row in quiz])
    with pytest.raises(UserError, match=rf"{name}\.jsonl:1 has `tools`"):
        read_splits(DataConfig(**plain))
    assert read_splits(DataConfig(**plain, ignore_columns=("tools",))).sizes == splits.sizes


def test_a_target_model_reads_rows_by_the_same_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _ReadError(Exception):
        pass

    def read(data: str, **options: Any) -> None:
        raise _ReadError(data, options["answers"], options["ignore_columns"])

    monkeypatch.setattr("nacd.commands.target.read_examples", read)
    data = DataConfig(data="a.jsonl", answers="texts", ignore_columns=("tools",))
    for run in (
        lambda: evaluate(EvaluateConfig(data=data)),
        lambda: fine_tune(TrainConfig(data=data, out=tmp_path)),
    ):
        with pytest.raises(_ReadError) as caught:
            run()
        assert caught.value.args == ("a.jsonl", "texts", ("tools",))
