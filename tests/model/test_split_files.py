"""The rows that a run keeps apart read back as the rows that it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacd.config import DataConfig
from nacd.data import Splits, read_examples
from nacd.model.lora import ModelConfig
from nacd.model.prepare import prepare
from nacd.model.split_files import held_out_line, write_splits

PLAIN = [{"instruction": f"Name thing {i}", "output": f"thing {i}"} for i in range(12)]
CHOICES = [
    {"question": f"Which is {i}?", "choices": [f"thing {i}", "none"], "answer": i % 2}
    for i in range(12)
]
TURNS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Is this {i}?"},
            {"role": "assistant", "content": "no label", "train": False},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": f"it is {i}"},
        ]
    }
    for i in range(12)
]


@pytest.mark.parametrize(
    ("rows", "arch", "more"),
    [
        (PLAIN, "llama", {}),
        (PLAIN, "gpt2", {}),
        (PLAIN, "llama", {"template": "Q {prompt}\nA {response}"}),
        (CHOICES, "llama", {}),
        (CHOICES, "llama", {"choices": "letter"}),
        (TURNS, "llama", {}),
    ],
)
def test_they_read_back_token_for_token(
    rows: list[dict[str, Any]],
    arch: str,
    more: dict[str, Any],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(data=str(file), target_rows=2, **more)
    model = ModelConfig(model=str(tiny_folder(arch)))
    prepared = prepare(model, data)
    written = write_splits(tmp_path, prepared, data)
    assert [path.stem for path in written] == ["train", "target", "validation", "test"]
    for path, part in zip(written, ("train", "target", "development", "report"), strict=True):
        again = prepare(
            model,
            DataConfig(data=str(path)),
            splits=Splits(read_examples(path), [], [], []),
            may_lack=("target", "development", "report"),
        )
        known = getattr(prepared, part)
        assert [(r.ids, r.response) for r in again.train.rows] == [
            (r.ids, r.response) for r in known.rows
        ]
        assert [e.choices for e in again.train.examples] == [e.choices for e in known.examples]
    line = held_out_line(tmp_path, prepared, data)
    assert f"nacd evaluate --data {written[-1]}" in line


def test_rows_of_a_file_of_their_own_are_not_written_again(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PLAIN))
    data = DataConfig(data=str(file), target=str(file))
    prepared = prepare(ModelConfig(model=str(tiny_folder("llama"))), data)
    assert "target" not in {path.stem for path in write_splits(tmp_path, prepared, data)}
