"""Rows of JSON: an object a line, or a list of objects, whatever the file is called."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nacd.data.keys import absent, has_meaning
from nacd.data.schema import looks_like_a_row
from nacd.data.text import text_lines
from nacd.errors import UserError

_BLANK = re.compile("[ \t\r\n\ufeff]*")
"""White space of JSON, and the mark that stands where a file was joined to another."""


_SCALAR = re.compile(r"[\w.+-]*")
"""What is left of a number or a word where a file was cut off."""
_MENDS = {
    "Expecting property name enclosed in double quotes": "Texts stand in double quotes",
    "Extra data": "Something stands behind the row; take it out",
    "Invalid control character": r"Write line breaks and tabs in texts as \n and \t",
}


class _TwiceError(ValueError):
    """A key stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise _TwiceError(f"the key `{key}` stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_rows(path: Path, name: str, named: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Pairs of (where the row came from, the row) of a JSON file.

    Args:
        path: JSON lines; a list of objects; an object with one such list; or one row.
        name: the file, as the user calls it.
        named: columns that the user has named; an object that has one is a row.

    Raises:
        UserError: not JSON; file and line are named.
    """
    lines = ((n, line) for n, line in enumerate(text_lines(path, name), start=1) if _said(line))
    first = next(lines, None)
    if first is None:
        return
    _, line = first
    try:
        values = _values(line)
    except (ValueError, RecursionError):
        values = []
    second = next(lines, None)
    if not values or not isinstance(values[0], dict):  # a list, or an object over several lines
        yield from _by_file("".join(text_lines(path, name)), name, named)
        return
    if second is None and len(values) == 1:
        _refuse_columns(values[0], name)
    lists = any(isinstance(inner, list) for inner in values[0].values())
    if second is None and len(values) == 1 and lists and not _is_row(values[0], named):
        yield from _by_file(line, name, named)
    else:
        yield from _by_line(itertools.chain([first], [second] if second else [], lines), name)


def _is_row(value: Mapping[str, Any], named: Collection[str]) -> bool:
    return looks_like_a_row(value) or any(column in value for column in named)


def _said(line: str) -> bool:
    match = _BLANK.match(line)
    return match is not None and match.end() < len(line)


def _values(text: str) -> list[Any]:
    """The JSON values that stand in a text one behind the other, with white space between."""
    found, at = [], _end(text, 0)
    while at < len(text):
        value, at = _DECODER.raw_decode(text, at)
        found.append(value)
        at = _end(text, at)
    return found


def _end(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _by_line(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[str, Any]]:
    for number, line in lines:
        try:
            values = _values(line)
        except (ValueError, RecursionError) as error:
            last = next(lines, None) is None
            raise _not_json(name, number, line, error, last) from None
        for value in values:
            yield f"{name}:{number}", value


def _by_file(text: str, name: str, named: Collection[str]) -> Iterator[tuple[str, Any]]:
    try:
        values = _values(text)
    except (ValueError, RecursionError) as error:
        number = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise _not_json(name, number, text, error, last=True) from None
    if len(values) == 1:
        values = _rows_inside(values[0], name, named)
    for number, row in enumerate(values, start=1):
        yield f"{name} row {number}", row


def _rows_inside(value: Any, name: str, named: Collection[str]) -> list[Any]:
    """The rows of the one value that a file holds."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        _refuse_columns(value, name)
        lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
        if _is_row(value, named) or not lists:
            return [value]
        if len(value) == len(lists) == 1:
            return next(iter(lists.values()))
        rows = {
            key: inner
            for key, inner in lists.items()
            if inner and all(isinstance(row, dict) for row in inner)
        }
        if len(rows) == 1:
            (key,) = rows
            _refuse_beside(value, key, name)
            return rows[key]
        if len(rows) > 1:
            raise UserError(
                f"{name} holds several lists of rows ({', '.join(rows)}). Write the one that is "
                "meant as a file of its own."
            )
    raise UserError(
        f"{name} holds neither a list of rows nor an object with one such list. "
        "Write it as a list of JSON objects, or as JSON lines (.jsonl)."
    )


def _refuse_columns(value: Mapping[str, Any], name: str) -> None:
    """Refuse a table that is written column by column."""
    columns = list(value.values())
    if len(columns) > 1 and (
        all(isinstance(column, dict) for column in columns)
        or all(isinstance(c, list) and c and all(isinstance(t, str) for t in c) for c in columns)
    ):
        raise UserError(
            f"{name} is written column by column: expected a list of rows. Write it as one (with "
            "pandas: `to_json(..., orient='records', lines=True)`)."
        )


def _refuse_beside(value: Mapping[str, Any], rows: str, name: str) -> None:
    """Refuse a text beside the list of rows that would belong to each of them."""
    for key, inner in value.items():
        if key != rows and has_meaning(key) and not absent(inner):
            raise UserError(
                f"{name} has `{key}` beside its list of rows, `{rows}`, and it would be lost. "
                "Write it into every row, or take it out."
            )


def _not_json(
    name: str, number: int, text: str, error: ValueError | RecursionError, last: bool
) -> UserError:
    place = f"{name}:{number}"
    if isinstance(error, RecursionError):
        return UserError(f"{place} is nested too deeply to be read. Write the row flat.")
    if isinstance(error, _TwiceError):
        return UserError(f"{place}: {error}, with two values. Keep one of them.")
    if not isinstance(error, json.JSONDecodeError):
        return UserError(f"{place} holds a number that cannot be read ({error}). Write it as text.")
    end = text.rstrip()
    opens = text[_end(text, 0) :][:1] in ("{", "[")
    cut = error.msg.startswith("Unterminated string") or _SCALAR.fullmatch(end, error.pos)
    if last and opens and cut:
        return UserError(
            f"{place} ends in the middle of a row: the file was cut short, or is still being "
            "written. Fetch or write it anew."
        )
    why = error.msg.removesuffix(" at")
    what = f"{place} is not valid JSON ({why} at column {error.colno})"
    if number == 1 and not opens:
        return UserError(
            f"{what}: expected an object a line, or a list of objects. If the file is a table, "
            "name it .csv."
        )
    behind = end[: error.pos].rstrip().endswith(("}", "]"))
    if behind and why == "Expecting value" and end[error.pos : error.pos + 1] == ",":
        return UserError(f"{what}. Take out the comma, or write the rows as a list: [ ... ].")
    return UserError(f"{what}. {_MENDS.get(why, 'Mend the row there')}.")
