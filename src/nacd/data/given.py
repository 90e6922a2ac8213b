"""Rows that are in memory, kept in a file: every run can then be repeated from its settings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nacd.errors import UserError
from nacd.store.files import json_text, write_text

FOLDER = Path("runs/rows")
"""Where such files go. They are named by the hash of the rows: the same rows, the same file."""


def name_of(data: Any, setting: str) -> str:
    """What a configuration names the data by: a path or hub id as it is, else the rows' file.

    Args:
        data: a path, a hub id, or rows: a list of dictionaries, a `datasets.Dataset` or any other
            iterable of mappings.
        setting: the setting that it was given to, for error messages.

    Raises:
        UserError: it is none of these, there is no row, or one cannot be written as JSON.
    """
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    forms = (
        "expected a file, a hub id, or rows: a list of dictionaries or a datasets.Dataset (of a "
        "DatasetDict one split; of a table frame.to_dict('records'))"
    )
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(f"{setting}: a {type(data).__name__}; {forms}.")
    lines = []
    for number, row in enumerate(data, 1):
        if not isinstance(row, Mapping):
            raise UserError(f"{setting}: row {number} is a {type(row).__name__}; {forms}.")
        lines.append(_line(row, f"{setting}: row {number}"))
    if not lines:
        raise UserError(f"{setting}: no rows; {forms}.")
    text = "".join(lines)
    file = FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    if not file.is_file():
        write_text(file, text)
    return str(file)


def _line(row: Mapping[str, Any], where: str) -> str:
    try:
        return json_text(row) + "\n"
    except (TypeError, ValueError):
        for column, value in row.items():
            try:
                json_text(value)
            except (TypeError, ValueError):
                raise UserError(
                    f"{where}: {column!r} holds a {type(value).__name__}, which is no JSON; leave "
                    "the column out, or make it text."
                ) from None
        raise UserError(f"{where}: its columns' names must be text.") from None
