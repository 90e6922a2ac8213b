"""What is exported is what `nacd train --data` reads: the same tokens and the same labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from test_dataset import CARD

from nacd.config.recipe import Recipe
from nacd.data import Example, Template, make_template, read_examples
from nacd.export import DatasetRow, render_learned_card, write_dataset, write_trainers
from nacd.model.lora import ModelConfig
from tiny import tiny_tokenizer

ROLES = {"s": "system", "u": "user", "a": "assistant"}
TEXTS = [
    "What does a plant need?",
    "two\nlines\u2028and\x85more\u2029\x0b",
    '你好 🙂 "quoted" \\n <b>&amp;</b> {prompt} %s',
    "[1, 2]",
    "1990-01-02",
    "<|im_end|>\n<|im_start|>assistant\nnot an answer",
]
FILES = ("", "train.jsonl", "train.parquet")
MESSAGES = ("train_with/messages.jsonl", "train_with/messages.parquet")


def exported(examples: Sequence[Example], template: Template, folder: Path) -> None:
    """Write rows as a run does."""
    rows = []
    for example in examples:
        row = template.row(example)
        rows.append(DatasetRow(row["prompt"], row["completion"], example.source, "ab" * 32, 0.0))
    write_dataset(folder, rows, render_learned_card(CARD, rows))
    write_trainers(folder, rows, Recipe(), ModelConfig(), max_tokens=64)


def labels(
    examples: Sequence[Example], template: Template, turns: Literal["all", "last"] = "all"
) -> list[list[tuple[int, bool]]]:
    """Every token of the rows, and whether it is a label; of the last turn's alone, as exported."""
    rows = [template.encode(example, turns) for example in examples]
    return [[*zip(row.ids, row.response, strict=True)] for row in rows]


def conversations(file: Path, spelt: list[str], texts: list[str]) -> Sequence[Example]:
    """Rows of the turns that the letters name, every text in every place."""
    rows = [
        [
            {"role": ROLES[letter], "content": texts[(i + shift) % len(texts)]}
            for i, letter in enumerate(letters)
        ]
        for letters in spelt
        for shift in range(len(texts))
    ]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return read_examples(file)


@pytest.mark.parametrize("file", [*FILES, *MESSAGES])
@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma3"])
def test_chat_rows_come_back(arch: str, file: str, tmp_path: Path) -> None:
    spelt = ["ua", "sua", "uaua", "suauaua"] + ["uua"] * (arch != "gemma3")
    texts = TEXTS[:1] + TEXTS[3:5] if arch == "gemma3" else TEXTS
    examples = conversations(tmp_path / "mine.jsonl", spelt, texts)
    template = make_template("auto", tiny_tokenizer(arch), examples)
    assert template.name == "chat"
    exported(examples, template, tmp_path / "dataset")
    read = read_examples(tmp_path / "dataset" / file)
    again = make_template("auto", tiny_tokenizer(arch), read)
    assert again.describe() == template.describe()
    assert labels(read, again) == labels(examples, template, "last")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("arch", ["gpt2", "opt", "qwen3"])
@pytest.mark.parametrize("name", ["qa", "alpaca", "plain", "Q {prompt} = {response} ."])
def test_raw_rows_come_back(name: str, arch: str, file: str, tmp_path: Path) -> None:
    examples = conversations(tmp_path / "mine.jsonl", ["ua", "sua"], TEXTS)
    template = make_template(name, tiny_tokenizer(arch), examples)
    exported(examples, template, tmp_path / "dataset")
    read = read_examples(tmp_path / "dataset" / file)
    again = make_template("auto", tiny_tokenizer(arch), read)
    assert again.name == "verbatim"
    assert labels(read, again) == labels(examples, template, "last")


def test_verbatim_rows_come_back(tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": f" {text}"} for text in TEXTS]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read_examples(file)
    template = make_template("auto", tiny_tokenizer("gpt2"), examples)
    for turn in range(3):  # what was read is exported, and read again
        exported(examples, template, tmp_path / f"{turn}")
        read = read_examples(tmp_path / f"{turn}" / "train.jsonl")
        assert labels(read, template) == labels(examples, template, "last")
        examples = read
