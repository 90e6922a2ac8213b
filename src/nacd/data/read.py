"""Rows in: files (JSONL, JSON, CSV, Parquet) or a hub data set become `Examples`.

The shape of the rows is recognised by `nacd.data.schema`; this module only finds the files and
keeps, for every row, the place to name when it is wrong (`mine.jsonl:12`).
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nacd.data.choices import Answers, ChoiceForm
from nacd.data.csv_rows import csv_rows
from nacd.data.hub import hub_parts, hub_rows
from nacd.data.json_rows import json_rows
from nacd.data.parquet_rows import parquet_rows
from nacd.data.schema import recognise
from nacd.data.stored import Examples
from nacd.data.text import opened
from nacd.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_KNOWN = ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})")

Rows = Iterator[tuple[str, Any]]
"""Pairs of (where the row came from, the row)."""


def read_examples(
    data: str | Path,
    *,
    choice_form: ChoiceForm = "cloze",
    answers: Answers = "auto",
    columns: Mapping[str, str] | None = None,
    ignore_columns: Collection[str] = (),
    group: str = "",
    split: str = "train",
    flag: str = "--data",
) -> Examples:
    """Read every row of a file, of a folder's split, of files by a pattern, or of a hub data set.

    Args:
        data: path of a .jsonl, .json, .csv, .tsv or .parquet file, perhaps compressed (.gz); a
            pattern of such paths (`shards/*.jsonl`); a folder that holds `<split>.<suffix>` or all
            of `<split>-00000-of-00002.<suffix>`, ... (`folder::split` names another split); or a
            hub id (`owner/name`, `owner/name:config:split`).
        choice_form: how a multiple-choice row becomes text: the question alone with the right
            answer's text (`cloze`), or the lettered options with the right letter (`letter`).
        answers: how a multiple-choice row names its answer, see `nacd.data.choices.answered`.
        columns: canonical column name -> the file's own name, `{"prompt": "q", "completion": "a"}`.
        ignore_columns: columns, and keys of turns, to be read as if they were not there.
        group: column that names a row's group, if any.
        split: the hub data set's (or folder's) split, where `data` names none.
        flag: the flag that named the data, for error messages.

    Raises:
        UserError: nothing there, nothing in it, or a row that cannot be used; names file and line.
    """
    name = str(data)
    named = (columns or {}).values()
    rows: Rows
    if paths := _files(name, split, flag):
        rows = itertools.chain.from_iterable(_rows_of_file(*path, named) for path in paths)
    else:
        rows = hub_rows(name, split, flag)
    first = next(rows, None)
    if first is None:
        raise UserError(
            f"{name} is empty: expected at least one row. Give {flag} a file with rows."
        )
    schema = recognise(*first, columns=columns, ignore=ignore_columns, group=group)
    return schema.examples(itertools.chain([first], rows), choice_form=choice_form, answers=answers)


def _files(name: str, split: str, flag: str) -> list[tuple[Path, str]]:
    """Pairs of (path, what to call it) of the files that a name stands for; none: ask the hub.

    Raises:
        UserError: a path, and nothing is there.
    """
    if name != name.encode(errors="replace").decode():
        raise UserError(f"{flag} {name!r}: the name is not UTF-8. Rename the file.")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return [(file, str(file)) for file in _split_files(path, split, flag)]
        if path.is_file():
            return [(path, name)]
        identifier, config, own = hub_parts(name)
        folder = Path(identifier).expanduser()
        if identifier != name and folder.is_dir():  # the hub's client would read it by its name
            if config:
                raise UserError(
                    f"{flag} {name}: {identifier} is a folder here, and has no configurations. "
                    f"Name its split alone: {identifier}::{own or config}"
                )
            return [(file, str(file)) for file in _split_files(folder, own or split, flag)]
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{flag} {name!r} cannot be read ({why}). Give another path.") from None
    if there:
        raise UserError(f"{name} is neither a file nor a folder. Write its rows to a file.")
    if glob.has_magic(name):
        found = sorted(
            file for file in glob.glob(str(path), recursive=True) if Path(file).is_file()
        )
        if not found:
            raise UserError(f"no file matches {name}. Give {flag} the path of a {_KNOWN} file.")
        return [(Path(file), file) for file in found]
    if _suffix(path) in SUFFIXES or name.startswith((".", "/", "~")):
        raise UserError(
            f"no such file: {name}. Give {flag} the path of a {_KNOWN} file, or a hub id."
        )
    return []


def _suffix(path: Path) -> str:
    """What kind of file a name says it is, compressed or not."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _split_files(folder: Path, split: str, flag: str) -> list[Path]:
    """The files of a split, in the folder itself or in its `data`, as the hub keeps them."""
    for place in (folder, folder / "data"):
        if not place.is_dir():
            continue
        files = {path.name: path for path in sorted(place.iterdir()) if path.is_file()}
        for suffix in SUFFIXES:
            for name in (f"{split}{suffix}", f"{split}{suffix}.gz"):
                if name in files:
                    return [files[name]]
        shards = {
            path: match
            for path in files.values()
            if _suffix(path) in SUFFIXES
            and (match := _SHARD.fullmatch(path.name.removesuffix(".gz").rpartition(".")[0]))
            and match["split"] == split
        }
        if shards:
            _check_shards(place, shards)
            return [*shards]
    kinds = [_suffix(path) for path in sorted(folder.iterdir())]
    kind = next((suffix for suffix in kinds if suffix in SUFFIXES), ".jsonl")
    raise UserError(
        f"{folder} is a folder without a {split}.jsonl (or .json, .csv, .tsv, .parquet), nor "
        f"{split}-00000-of-... Give {flag} the file itself, or a pattern in quotes: "
        f"'{folder}/*{kind}'"
    )


def _check_shards(folder: Path, shards: Mapping[Path, re.Match[str]]) -> None:
    numbers = sorted(int(match["number"]) for match in shards.values())
    counts = {int(match["count"]) for match in shards.values()}
    if len(counts) > 1 or numbers != list(range(max(counts))):
        raise UserError(
            f"{folder} holds {len(numbers)} of {max(counts)} parts of a split, the first "
            f"{next(iter(shards)).name}: each must be there once. Fetch the others, or give the "
            "files by a pattern in quotes."
        )


def _rows_of_file(path: Path, name: str, named: Collection[str]) -> Rows:
    with opened(path, name) as file:
        head = file.peek(4)[:4]
    if not head:
        return iter(())
    suffix = _suffix(path)
    if head == b"PAR1" or suffix == ".parquet":
        return parquet_rows(path, name)
    if suffix in (".jsonl", ".json"):
        return json_rows(path, name, named)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, name, named)
    raise UserError(
        f"{name} is not a kind of file that can be read: expected {_KNOWN}. "
        "Convert it, or rename it if it is one of these."
    )
