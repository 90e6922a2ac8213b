from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from nacd.errors import UserError
from nacd.export import (
    Card,
    DatasetRow,
    render_chosen_card,
    render_learned_card,
    write_dataset,
)
from nacd.export.card import with_license
from nacd.export.dataset import shared_name
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


def write(folder: Path, rows: list[DatasetRow], card: Card = CARD) -> None:
    write_dataset(folder, rows, render_learned_card(card, rows))


def header(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("/srv/rows/mine.jsonl", "mine.jsonl"),
        ("/srv/rows/mine.jsonl:12", "mine.jsonl:12"),
        ("data/mine.jsonl:12", "data/mine.jsonl:12"),
        ("owner/name:easy[test] row 2", "owner/name:easy[test] row 2"),
        ("smollm2", "smollm2"),
    ],
)
def test_names_go_out_without_folders_of_this_machine(name: str, shared: str) -> None:
    assert shared_name(name) == shared


@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
def test_load_dataset_gives_the_rows(rows: list[DatasetRow], tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    write(folder, rows)
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
    write(tmp_path, RAW)
    first = (tmp_path / "train.jsonl").read_bytes()
    write(tmp_path, CHAT)
    write(tmp_path, RAW)
    assert (tmp_path / "train.jsonl").read_bytes() == first


def test_card_says_what_the_rows_are() -> None:
    results = [
        {"row": "random", "NLL": 2.81234, "minus seeds (95 %)": "+0.012 ± 0.003"},
        {"row": "NACD text", "NLL": None, "minus seeds (95 %)": ""},
    ]
    text = render_learned_card(replace(CARD, results=results), RAW)
    said = header(text)
    assert said["configs"][0]["data_files"] == [{"split": "train", "path": "train.jsonl"}]
    assert said["task_categories"] == ["text-generation"]
    assert said["size_categories"] == ["n<1K"]
    assert "license" not in said
    assert "language" not in said
    for f in fields(Recipe):
        assert f"| `{f.name}` | " in text
    assert "| `learning_rate` | 0.0003 |" in text
    assert "12.5% of the learnable tokens" in text
    assert "| random | 2.812 | +0.012 ± 0.003 |" in text
    assert "| NACD text | n/a |  |" in text
    assert "2504.09818" in text
    assert "(`role`, `content`)" in render_learned_card(CARD, CHAT)


def test_card_names_untouched_seeds() -> None:
    text = render_learned_card(CARD, RAW[1:])
    assert "These rows are the seeds" in text
    assert "Not measured." in text


@pytest.mark.parametrize("chosen", [False, True])
def test_card_says_licence_language_and_provenance(chosen: bool) -> None:
    def render(card: Card) -> str:
        if chosen:
            return render_chosen_card(card, "rds+", RAW, in_order=False)
        return render_learned_card(card, RAW)

    provenance = {
        "versions": {"nacd": "9.9", "torch": "2.1"},
        "data": {"train": "300 rows, abcd", "report": "40 rows, ef01"},
        "began": "2026-01-02",
    }
    known = replace(CARD, license="cc-by-4.0", language="en, no", provenance=provenance)
    text = render(known)
    assert header(text)["license"] == "cc-by-4.0"
    assert header(text)["language"] == ["en", "no"]
    assert "`cc-by-4.0`, as the source data" in text
    assert "**Unknown.**" not in text
    assert "| train data | 300 rows, abcd |" in text
    assert "| made with | nacd 9.9, torch 2.1 |" in text
    unknown = render(replace(known, license=""))
    assert "**Unknown.**" in unknown
    assert "license" not in header(unknown)
    relicensed = with_license(unknown, "cc-by-4.0")
    assert header(relicensed) == header(text)
    assert relicensed.split("---\n", 2)[2] == text.split("---\n", 2)[2]
    assert with_license(relicensed, "cc-by-4.0") == relicensed


def test_chosen_card_says_that_rows_are_real() -> None:
    card = replace(CARD, projection="none")
    assert "in the order of the draw" in render_chosen_card(card, "random", RAW, in_order=True)
    text = render_chosen_card(card, "rds+", RAW, in_order=False)
    assert "real rows, chosen by rds+" in text
    assert "| projection |" not in text
    assert "data-selection" in header(text)["tags"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows to write"):
        write_dataset(tmp_path, [], "")
    with pytest.raises(UserError, match="one --template"):
        write_dataset(tmp_path, RAW + CHAT, "")
    assert list(tmp_path.iterdir()) == []


def test_a_card_says_what_a_prefix_is() -> None:
    card = replace(CARD, settings={**CARD.settings, "learnable positions": "prefix:8"})
    rows = [replace(RAW[0], tokens_changed=1.0), replace(RAW[0], tokens_changed=0.0)]
    text = " ".join(render_learned_card(card, rows).split())
    assert "before its prompt stand 8 learned tokens (in 1 rows they do not" in text
    assert "the prompt's tokens were learned" not in text
