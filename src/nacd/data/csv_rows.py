"""Rows of a table in text: CSV as its writer made it, with commas, semicolons, tabs or bars."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from nacd.data.keys import has_meaning
from nacd.data.row import listed
from nacd.data.text import text_lines
from nacd.errors import UserError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}

_SAID = re.compile(r'"?sep=(.)"?\s*')
"""The line that Excel puts before a table to name its separator."""


def csv_rows(
    path: Path, name: str, named: Collection[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Pairs of (where the row came from, the row) of a table.

    Args:
        path: a table with a header.
        name: the file, as the user calls it.
        named: columns that the user has named.

    Raises:
        UserError: a record has more or fewer cells than the header, quotes are open, two columns
            share a name, or it cannot be told what separates the cells; file and line are named.
    """
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long response
    separator = _separator(path, name, named)
    records = _records(path, name, separator)
    try:
        first = next(records, None)
        if first is None:
            return
        header = [cell.strip() for cell in first[1]]
        _check_header(header, f"{name}:{first[0]}")
        for line, cells in records:
            source = f"{name}:{line}"
            _check_record(cells, header, separator, source)
            yield (
                source,
                {column: cell for column, cell in zip(header, cells, strict=False) if column},
            )
    except _TableError as error:
        raise UserError(
            f"{name}:{error.line} is not valid CSV ({error.why}). A quote inside a quoted cell is "
            "written twice, and every quoted cell is closed: mend the record that begins there."
        ) from None


class _TableError(Exception):
    """A record that cannot be parsed."""

    def __init__(self, line: int, why: str):
        super().__init__(why)
        self.line, self.why = line, why


def _records(path: Path, name: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Pairs of (line, cells); records of blank cells alone are left out, as is Excel's first line.

    Raises:
        _TableError: a record that is none.
    """
    lines = (part for line in text_lines(path, name) for part in io.StringIO(line, newline=""))
    first = next(lines, "")
    skipped = 1 if _SAID.fullmatch(first) else 0
    rest = lines if skipped else itertools.chain([first], lines)
    reader = csv.reader(rest, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _TableError(line, str(error)) from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _separator(path: Path, name: str, named: Collection[str]) -> str:
    """What stands between the cells of a table.

    Raises:
        UserError: two separators read the whole table equally well.
    """
    first = next(text_lines(path, name), "")
    if said := _SAID.fullmatch(first):
        return said[1]
    order = sorted(SEPARATORS, key=lambda s: s != "\t") if ".tsv" in path.name else [*SEPARATORS]
    headers = {s: header for s in order if len(header := _header(path, name, s)) > 1}
    if len(headers) > 1:
        whole = [s for s in headers if _is_regular(path, name, s)]
        headers = {s: headers[s] for s in whole or headers}
    if not headers:
        return ","  # one column
    known = {
        s: sum(has_meaning(column) or column.strip() in named for column in header)
        for s, header in headers.items()
    }
    best = [s for s in headers if known[s] == max(known.values())]
    if len(best) > 1:
        names = " and of ".join(f"{SEPARATORS[s]}s ({listed(headers[s])})" for s in best)
        raise UserError(
            f"{name} can be read as a table of {names}. Quote the cells that hold the character "
            "that separates nothing."
        )
    return best[0]


def _header(path: Path, name: str, separator: str) -> list[str]:
    try:
        return next(_records(path, name, separator), (0, []))[1]
    except _TableError:
        return []


def _is_regular(path: Path, name: str, separator: str) -> bool:
    """Whether every record has as many cells as the header."""
    try:
        return len({len(cells) for _, cells in _records(path, name, separator)}) == 1
    except _TableError:
        return False


def _check_header(header: Sequence[str], source: str) -> None:
    if header[0].startswith(("{", "[{")):
        raise UserError(f"{source} is JSON and no table. Name the file .jsonl.")
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise UserError(
            f"{source}: the header names {listed(twice)} twice. Give each column a name of its own."
        )


def _check_record(cells: list[str], header: Sequence[str], separator: str, source: str) -> None:
    between = SEPARATORS.get(separator, repr(separator))
    many = "cell" if len(cells) == 1 else "cells"
    count = f"{len(cells)} {many}, and the header {len(header)} columns"
    if len(cells) < len(header):
        raise UserError(
            f"{source} has {count}, with a {between} between them. Quote cells that hold line "
            f"breaks, and write the {between} of an empty cell too."
        )
    if any(cell.strip() for cell in cells[len(header) :]):
        spaced = next((cell for cell in cells if cell.lstrip(" ") != cell and '"' in cell), "")
        also = f" A quote opens a cell only right behind the {between}." if spaced else ""
        raise UserError(
            f"{source} has {count}, with a {between} between them. Quote the cells that hold "
            f"{between}s.{also}"
        )
    if [cell.strip().lstrip("\ufeff") for cell in cells[: len(header)]] == list(header):
        raise UserError(
            f"{source} repeats the header, as where files were joined. Take that line out."
        )
    for column, cell in zip(header, cells, strict=False):
        if not column and cell.strip() and not cell.strip().isdecimal():
            raise UserError(
                f"{source} has a cell in a column that the header does not name: "
                f"{cell[:40]!r}. Name the column, or take it out."
            )
