"""The rows that a run keeps apart, as files: `splits/<part>.jsonl` of the run folder.

    train.jsonl        the rows that are distilled or chosen from, target and held-out rows left out
    target.jsonl       rows that a method may look at, where they were cut from --data
    validation.jsonl   rows that settings are chosen by
    test.jsonl         rows that figures are of; for `nacd evaluate --data`

They read back as the rows that the run measured, token for token: chat rows as `messages`, rows of
a raw template written out as `prompt` and `completion`. Multiple-choice rows keep their choices,
so that accuracy can be measured, and are written by the template anew.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from nacd.config import DataConfig, ReadConfig
from nacd.data import Example, Template
from nacd.data.choices import LETTERS
from nacd.model.prepare import Prepared
from nacd.store.files import write_json_lines

FOLDER = "splits"
PARTS = {"train": "train", "target": "target", "development": "validation", "report": "test"}
"""A part's name in `Prepared` -> the file's."""


def write_splits(folder: Path, prepared: Prepared, data: DataConfig) -> list[Path]:
    """Write every part that has rows and is no file of the user's own.

    Args:
        folder: the run folder.
        prepared: the parts.
        data: what they were cut from.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    written = []
    for part, name in PARTS.items():
        examples = getattr(prepared, part).examples
        if examples and not (part == "target" and data.target):
            path = folder / FOLDER / f"{name}.jsonl"
            write_json_lines(path, (_row(example, prepared.template) for example in examples))
            written.append(path)
    return written


def held_out_line(folder: Path, prepared: Prepared, data: DataConfig) -> str:
    """The end of a run's output: the file of held-out rows, and how to measure on them."""
    flags = []
    if data.template != "auto" and prepared.report.examples[0].choices:
        flags += ["--template", shlex.quote(data.template)]
    if data.max_tokens > ReadConfig().max_tokens:
        flags += ["--max-tokens", str(data.max_tokens)]
    file = shlex.quote(str(folder / FOLDER / "test.jsonl"))
    return f"{len(prepared.report)} test rows: " + " ".join(["nacd evaluate --data", file, *flags])


def said_on_card(prepared: Prepared) -> dict[str, str]:
    """The card's setting on the parts that were kept apart; empty where there are none."""
    if not len(prepared.report):
        return {}
    return {
        "held-out rows": f"{len(prepared.development)} validation and {len(prepared.report)} test "
        f"rows, in the run folder as {FOLDER}/validation.jsonl and {FOLDER}/test.jsonl"
    }


def _row(example: Example, template: Template) -> dict[str, Any]:
    if example.choices is not None and example.answer is not None:
        labels = [*LETTERS[: len(example.choices)]]
        return {
            "question": example.prompt,
            "choices": {"text": [*example.choices], "label": labels},
            "answerKey": labels[example.answer],
        }
    if template.text is not None:
        return template.row(example)
    return {
        "messages": [
            {"role": message.role, "content": message.content}
            | ({} if message.train or message.role != "assistant" else {"train": False})
            for message in example.messages
        ]
    }
