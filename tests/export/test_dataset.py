from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from nacd.errors import UserError
from nacd.export import Card, DatasetRow, write_dataset
from nacd.recipe import Recipe

CARD = Card(
    data="mine.jsonl",
    data_rows=300,
    model="owner/model",
    template={"name": "qa", "text": "Question: {prompt}\nAnswer: {response}"},
    recipe=Recipe(learning_rate=3e-4, steps=12),
    projection="simplex",
)

RAW = [
    DatasetRow("Question: Why | 你?\nAnswer:", " since", "mine.jsonl:3", "ab" * 32, 0.25),
    DatasetRow('Question: "b"\u2028c\nAnswer:', " no", "mine.jsonl:9", "cd" * 32, 0.0),
]
CHAT = [
    DatasetRow(
        [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": q}],
        [{"role": "assistant", "content": a}],
        f"mine.jsonl:{i}",
        "ef" * 32,
        i / 10,
    )
    for i, (q, a) in enumerate([("Hi", "Hello"), ("Why?", "Since 🙂")])
]


@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
def test_load_dataset_gives_the_rows(rows: list[DatasetRow], tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    write_dataset(folder, rows, CARD)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "train.jsonl", "train.parquet"]
    loaded: Any = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    expected = [asdict(row) for row in rows]
    assert loaded["train"].to_list() == expected
    columnar = datasets.Dataset.from_parquet(
        str(folder / "train.parquet"), cache_dir=str(tmp_path / "parquet")
    )
    assert isinstance(columnar, datasets.Dataset)
    assert columnar.to_list() == expected


def test_writing_again_replaces(tmp_path: Path) -> None:
    write_dataset(tmp_path, RAW, CARD)
    first = (tmp_path / "train.jsonl").read_bytes()
    write_dataset(tmp_path, CHAT, CARD)
    write_dataset(tmp_path, RAW, CARD)
    assert (tmp_path / "train.jsonl").read_bytes() == first


def test_card_says_what_the_rows_are(tmp_path: Path) -> None:
    results = [
        {"row": "random", "NLL": 2.81234, "tokens": 900},
        {"row": "NACD text", "NLL": None, "tokens": 911},
    ]
    write_dataset(tmp_path, RAW, Card(**{**CARD.__dict__, "results": results}))
    text = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "train.jsonl"}]
    assert header["task_categories"] == ["text-generation"]
    assert header["size_categories"] == ["n<1K"]
    assert "license" not in header
    for f in fields(Recipe):
        assert f"| `{f.name}` | " in text
    assert "| `learning_rate` | 0.0003 |" in text
    assert "12.5% of the learnable tokens" in text
    assert "| random | 2.812 | 900 |" in text
    assert "| NACD text | n/a | 911 |" in text
    assert "2504.09818" in text


def test_card_names_untouched_seeds(tmp_path: Path) -> None:
    write_dataset(tmp_path, RAW[1:], CARD)
    text = (tmp_path / "README.md").read_text()
    assert "These rows are the seeds" in text
    assert "Not measured." in text


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows to write"):
        write_dataset(tmp_path, [], CARD)
    with pytest.raises(UserError, match="one --template"):
        write_dataset(tmp_path, RAW + CHAT, CARD)
    assert list(tmp_path.iterdir()) == []
