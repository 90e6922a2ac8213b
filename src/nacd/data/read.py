"""Rows in: a file (JSONL, JSON, CSV, Parquet) or a hub data set becomes a list of `Example`.

The shape of the rows is recognised by `nacd.data.schema`; this module only finds the rows and
keeps, for every one, the place to name when it is wrong (`mine.jsonl:12`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nacd.data.example import Example
from nacd.data.hub import hub_rows
from nacd.data.schema import ChoiceForm, recognise
from nacd.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

Rows = Iterator[tuple[str, Any]]
"""Pairs of (where the row came from, the row)."""


def read_examples(
    data: str | Path,
    *,
    choice_form: ChoiceForm = "cloze",
    columns: Mapping[str, str] | None = None,
    group: str = "",
    split: str = "train",
    flag: str = "--data",
) -> list[Example]:
    """Read every row of a file, of a folder's split file, or of a hub data set.

    Args:
        data: path of a .jsonl, .json, .csv or .parquet file, of a folder that holds
            `<split>.<suffix>`, or a hub id (`owner/name`, `owner/name:config:split`).
        choice_form: how a multiple-choice row becomes text: the question alone with the right
            answer's text (`cloze`), or the lettered options with the right letter (`letter`).
        columns: canonical column name -> the file's own name, `{"prompt": "q", "completion": "a"}`.
        group: column that names a row's group, if any.
        split: the hub data set's (or folder's) split, where `data` names none.
        flag: the flag that named the data, for error messages.

    Raises:
        UserError: nothing there, nothing in it, or a row that cannot be used; names file and line.
    """
    name, path = str(data), Path(data).expanduser()
    if path.is_dir():
        path = _split_file(path, split, flag)
        name = str(path)
    rows: Rows
    if path.is_file():
        rows = _rows_of_file(path, name)
    elif path.suffix.lower() in SUFFIXES or name.startswith((".", "/", "~")):
        raise UserError(
            f"no such file: {name}. Give {flag} the path of a {_suffixes()} file, or a hub id."
        )
    else:
        rows = hub_rows(name, split, flag)

    first = next(rows, None)
    if first is None:
        raise UserError(
            f"{name} is empty: expected at least one row. Give {flag} a file with rows."
        )
    schema = recognise(*first, columns=columns, group=group)
    examples = [schema.example(*first, choice_form=choice_form)]
    examples.extend(schema.example(source, row, choice_form=choice_form) for source, row in rows)
    return examples


def _suffixes() -> str:
    return ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"


def _split_file(folder: Path, split: str, flag: str) -> Path:
    for suffix in SUFFIXES:
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise UserError(
        f"{folder} is a folder without a {split}.jsonl (or .json, .csv, .parquet). "
        f"Give {flag} the file itself."
    )


def _rows_of_file(path: Path, name: str) -> Rows:
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl(path, name)
        case ".json":
            return _json(path, name)
        case ".csv":
            return _csv(path, name)
        case ".parquet":
            return _parquet(path, name)
        case _:
            raise UserError(
                f"{name} is not a kind of file that can be read: expected {_suffixes()}. "
                "Convert it, or rename it if it is one of these."
            )


def _jsonl(path: Path, name: str) -> Rows:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            source = f"{name}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if line:
                    yield source, json.loads(line)
            except UnicodeDecodeError as error:
                raise _not_utf8(source, error) from None
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{source} is not valid JSON ({error.msg} at column {error.colno}): "
                    "expected one JSON object a line. Mend or delete that line."
                ) from None


def _json(path: Path, name: str) -> Rows:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # JSON lines under the name .json
            yield from _jsonl(path, name)
            return
        if not path.read_bytes().strip():
            return
        raise UserError(
            f"{name}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno}). "
            "Mend the file."
        ) from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        rows_inside = [rows for rows in lists if rows and all(isinstance(r, dict) for r in rows)]
        if len(content) == 1 and len(lists) == 1:
            content = lists[0]
        elif len(rows_inside) == 1 and "messages" not in content and "conversations" not in content:
            content = rows_inside[0]
        elif not lists or "messages" in content or "conversations" in content:
            content = [content]  # one row, written over several lines
    if not isinstance(content, list):
        raise UserError(
            f"{name} holds neither a list of rows nor an object with one such list. "
            "Write it as a list of JSON objects, or as JSON lines (.jsonl)."
        )
    for number, row in enumerate(content, start=1):
        yield f"{name} row {number}", row


def _csv(path: Path, name: str) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long response
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                breaks = sum(cell.count("\n") for cell in row.values() if isinstance(cell, str))
                source = f"{name}:{reader.line_num - breaks}"
                if None in row:
                    raise UserError(
                        f"{source} has more cells than the header's {len(reader.fieldnames or ())} "
                        "columns. Quote the cells that hold commas."
                    )
                yield source, row
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from None
    except csv.Error as error:
        line = reader.line_num + 1 if reader else 1  # where the record begins that is not whole
        raise UserError(f"{name}:{line} is not valid CSV ({error}). Mend that line.") from None


def _parquet(path: Path, name: str) -> Rows:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name} row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"{name} is not a readable Parquet file ({_first_line(error)}). Write it anew."
        ) from None


def _not_utf8(source: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{source} is not UTF-8 ({error.reason}). Re-save it as UTF-8.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
