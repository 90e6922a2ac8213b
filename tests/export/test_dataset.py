from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import yaml
from markdown_it import MarkdownIt

from nacd.config.recipe import Recipe
from nacd.data import read_examples
from nacd.errors import UserError
from nacd.export import (
    Card,
    DatasetRow,
    render_chosen_card,
    render_learned_card,
    write_dataset,
)
from nacd.export.card import code, table, with_license
from nacd.export.dataset import shared_name

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
        ("data/\udcffrows.jsonl:3", "data/\\udcffrows.jsonl:3"),
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


def load(folder: Path, cache: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows of a folder as its reader has them, who keeps what it reads in `cache`."""
    loaded: Any = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache), **options)
    return [*loaded]


def a_run(folder: Path, answers: Sequence[str]) -> list[dict[str, Any]]:
    """A data set `folder/dataset` of rows that differ in their completions alone."""
    rows = [replace(RAW[0], completion=f" {answer}") for answer in answers]
    write(folder / "dataset", rows)
    return [asdict(row) for row in rows]


def test_no_run_is_read_as_another(tmp_path: Path) -> None:
    cache, one, two = tmp_path / "cache", tmp_path / "one", tmp_path / "two"
    first, second = a_run(one, ["yes", "no"]), a_run(two, ["not", "yet"])
    for _ in range(2):
        assert load(one / "dataset", cache) == first
        assert load(two / "dataset", cache) == second
    for folder, rows in ((one, first), (two, second)):
        assert load(folder / "dataset", cache, streaming=True) == rows
    shutil.copytree(two, tmp_path / "moved")
    shutil.rmtree(one)
    shutil.move(two, one)
    assert load(tmp_path / "moved" / "dataset", cache) == second
    assert load(one / "dataset", cache) == second
    again = a_run(one, ["other", "rows", "here"])
    assert load(one / "dataset", cache) == again
    card = one / "dataset" / "README.md"
    card.write_text(with_license(card.read_text(), "cc-by-4.0"))
    assert load(one / "dataset", cache) == again


def test_no_run_is_read_as_another_by_another_process(tmp_path: Path) -> None:
    a_run(tmp_path / "one", ["yes", "no"])
    second = a_run(tmp_path / "two", ["not", "yet"])
    load(tmp_path / "one" / "dataset", tmp_path / "cache")
    read = (
        "import datasets, json, sys\n"
        "loaded = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])\n"
        "print(json.dumps([*loaded['train']]))"
    )
    command = [sys.executable, "-c", read, "two/dataset", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == second


ODD = [
    "two\nlines\r\nand\rthree\x0b\x0c\x1c\x1d\x1e\x1f",
    "next\x85line, line\u2028separator, paragraph\u2029separator",
    "\ufeffmark, \x00 nul, \x7f del, \u200b none, \u202e back, \ufffd, \ufffe",
    "你好 🙂 e\u0301 \U0010ffff",
    '---\n"quotes" \\ \\n \\u2028 \t| pipe | `tick`',
    "<|im_end|></s><b>x</b>&amp; {prompt} {{content}} %s",
    "  spaces  \n\n",
]
DATES = ["1990-01-02", "2004-05-06 07:08:09", "1879-03-14T00:00:00Z"]
NUMBERS = ["12", "0042", "1e5"]
WORDS = ["null", "true", "NaN"]


def rows_of(texts: Sequence[str], chat: bool) -> list[DatasetRow]:
    """Every text as a prompt and as a completion."""
    if not chat:
        return [DatasetRow(text, text, f"a:{i}", "ab" * 32, 0.0) for i, text in enumerate(texts)]
    return [
        DatasetRow(
            [{"role": "system", "content": text}, {"role": "user", "content": text}],
            [{"role": "assistant", "content": text}],
            f"a:{i}",
            "ab" * 32,
            0.0,
        )
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("chat", [False, True], ids=["raw", "chat"])
@pytest.mark.parametrize(
    "texts", [ODD, DATES, NUMBERS, WORDS], ids=["odd", "dates", "numbers", "words"]
)
def test_what_is_written_is_read_back(texts: list[str], chat: bool, tmp_path: Path) -> None:
    rows, folder = rows_of(texts, chat), tmp_path / "dataset"
    write(folder, rows)
    expected = [asdict(row) for row in rows]
    text = (folder / "train.jsonl").read_bytes().decode("utf-8")
    assert [json.loads(line) for line in text.splitlines()] == expected
    assert len(text.split("\n")) == len(rows) + 1
    assert load(folder, tmp_path / "cache") == expected
    frames: Any = pandas
    for read in (
        frames.read_json(folder / "train.jsonl", lines=True, dtype=False),
        frames.read_parquet(folder / "train.parquet"),
    ):
        assert json.loads(read.to_json(orient="records")) == expected
    for name in ("train.jsonl", "train.parquet"):
        for example, row in zip(read_examples(folder / name), rows, strict=True):
            assert [message.content for message in example.messages] == row.texts


def test_half_a_character_is_named(tmp_path: Path) -> None:
    rows = [RAW[0], replace(RAW[1], completion=" \ud83d and no more")]
    with pytest.raises(UserError, match=r"mine\.jsonl:9: holds U\+D83D"):
        write(tmp_path / "dataset", rows)
    assert not (tmp_path / "dataset").exists()


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
    assert said["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]
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


def test_a_card_says_once_that_the_packaged_model_is_a_4_bit_copy() -> None:
    card = render_learned_card(replace(CARD, model="smollm2"), RAW)
    assert card.count("4-bit copy: GGUF, dequantised") == card.count("4-bit") == 1
    assert "4-bit" not in render_learned_card(CARD, RAW)


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


MARKDOWN = MarkdownIt("commonmark").enable("table")
ODD_NAMES = [
    'notes: "v2" #1 [draft](x) *a* _b_ ~c~ | `d` ``e`` $f$.jsonl',
    "<b>x</b><!-- &amp; <script>.jsonl",
    "two\nlines\n---\n## Licence\n\u2028\x1b[1m.jsonl",
    "{prompt} {} %s {{x}}.jsonl",
    " ` ",
    "你 好 🙂.jsonl",
    "long" * 500,
]


def shape(body: str) -> dict[str, Any]:
    """What a reader of Markdown makes of a text: headings, tables, code, and raw HTML."""
    tokens = MARKDOWN.parse(body)
    inline = [part for token in tokens for part in token.children or ()]
    return {
        "headings": [
            following.content
            for token, following in itertools.pairwise(tokens)
            if token.type == "heading_open"
        ],
        "cells": [token.type for token in tokens if token.type in ("tr_open", "td_open")],
        "code": [part.content for part in inline if part.type == "code_inline"],
        "html": [t.content for t in [*tokens, *inline] if t.type in ("html_block", "html_inline")],
    }


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
@pytest.mark.parametrize("chosen", [False, True], ids=["learned", "chosen"])
def test_a_card_bears_any_name(name: str, chosen: bool) -> None:
    def render(name: str) -> str:
        card = replace(CARD, data=name, license=name, model=name, template={"text": name})
        if chosen:
            return render_chosen_card(card, "rds+", RAW, in_order=False)
        return render_learned_card(card, RAW)

    odd, plain = render(name), render("mine.jsonl")
    assert header(odd) == header(plain) | {"license": name}
    found, expected = (shape(text.split("\n---\n", 1)[1]) for text in (odd, plain))
    shown = name.replace("\n", "\\n").replace("\u2028", "\\u2028").replace("\x1b", "\\x1b")
    assert found["code"].count(shown) == expected["code"].count("mine.jsonl") == 4
    assert (
        json.dumps({"text": name}, ensure_ascii=False).replace("\u2028", "\\u2028") in found["code"]
    )
    assert found["html"] == []
    for part in ("headings", "cells"):
        assert found[part] == expected[part]
    assert header(with_license(odd, "mit")) == header(odd) | {"license": "mit"}
    assert with_license(odd, "mit") == with_license(with_license(odd, name), "mit")


@pytest.mark.parametrize("text", ["a", "`", "a``b`", " a ", "", "a|b"])
def test_code_and_tables_hold_any_text(text: str) -> None:
    written = code(text)
    assert shape(f"x {written} y")["code"] == [text or " "]
    cells = shape(table([{"a": written, "b": "x|y\nz"}]))
    assert cells["code"] == [text or " "]
    assert cells["cells"] == ["tr_open", "tr_open", "td_open", "td_open"]


def test_a_card_without_header_gets_one() -> None:
    for text in ("", "# Rows\n", "---\n# Rows\n"):
        assert header(with_license(text, "mit")) == {"license": "mit"}
        assert with_license(text, "mit").endswith(text)


def test_settings_stand_in_the_card_to_the_last_digit() -> None:
    card = replace(CARD, recipe=Recipe(learning_rate=0.00123456789, steps=12))
    text = render_learned_card(card, RAW)
    assert "| `learning_rate` | 0.00123456789 |" in text
    assert "--learning-rate 0.00123456789 " in text


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
