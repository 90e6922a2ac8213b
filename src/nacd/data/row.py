"""One row, read by our names for its columns; what is read is marked, and the rest looked up.

A column is found by the user's mapping (`--columns output=reply`), else by its name or another name
of the same thing (`system_prompt` for `system`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from nacd.data.keys import absent, canonical, refuse_columns
from nacd.errors import UserError

_OPTION = re.compile(r"(|options?|choices?|opt|op|ending)[ _-]?([a-z]|\d{1,2})", re.IGNORECASE)
"""A column of its own for an answer: `A`, `option_a`, `choice1`."""


class Row:
    """One row and its place.

    Args:
        source: the place, `mine.jsonl:12`.
        values: the row, as parsed.
        columns: our name -> the row's own, as the user maps them.
        ignore: names of columns, and of keys of turns, that the user wants ignored.

    Raises:
        UserError: no mapping of names to values.
    """

    def __init__(
        self, source: str, values: Any, columns: Mapping[str, str], ignore: Collection[str]
    ):
        if not isinstance(values, Mapping):
            raise UserError(
                f"{source} is not a JSON object but {kind(values)}: expected a row with named "
                "columns. Write it as one."
            )
        self.source = source
        self.ignore = ignore
        self.values = {str(k): value for k, value in values.items() if k not in ignore}
        self._used: set[str] = set()
        mapped = set(columns.values())
        self._own: dict[str, list[str]] = {
            ours: [own] for ours, own in columns.items() if own in self.values
        }
        for name in self.values:
            ours = canonical(name)
            if ours and ours not in columns and name not in mapped:
                self._own.setdefault(ours, []).append(name)
        several = [part.strip() for part in columns.get("choices", "").split(",")]
        if len(several) > 1 and all(name in self.values for name in several):
            self._own["choices"] = several
        elif "question" in self._own and "choices" not in {*self._own, *columns}:
            self._own["choices"] = self._options()

    def __contains__(self, column: str) -> bool:
        """Whether the row has the column, be it empty."""
        return bool(self._own.get(column))

    def name(self, column: str) -> str:
        """The row's own name for a column."""
        return ", ".join(self._own.get(column) or [column])

    def get(self, column: str) -> Any:
        """The value of a column, which counts as used then; None where there is none.

        Raises:
            UserError: two columns for one thing say different things.
        """
        names = self._own.get(column)
        if not names:
            return None
        self._used.update(names)
        if len(names) == 1:
            return self.values[names[0]]
        if column == "choices":
            return [self.values[name] for name in names]
        said = [name for name in names if not absent(self.values[name])]
        for other in said[1:]:
            if self.values[other] != self.values[said[0]]:
                raise UserError(
                    f"{self.source}: `{said[0]}` and `{other}` say different things, and a row has "
                    f"one {column}. Give --ignore-columns with the one to leave out."
                )
        return self.values[(said or names)[0]]

    def has_text(self, column: str) -> bool:
        """Whether a column, which counts as used then, says anything; `[]` is text."""
        value = self.get(column)
        return bool(value.strip()) if isinstance(value, str) else not absent(value)

    def structure(self, column: str) -> Any:
        """The value of a column, or what a cell of a table spells out as JSON."""
        value = self.get(column)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self.wrong(
                    f"`{self.name(column)}` is text that looks like JSON and is not "
                    f"({str(error).splitlines()[0]}): expected double quotes around texts, and "
                    "commas between values. Write it as JSON."
                ) from None
        return value

    def text(self, column: str) -> str:
        """The text of a column.

        Raises:
            UserError: not text, or text that cannot be written as UTF-8.
        """
        return text(self.source, self.get(column), f"`{self.name(column)}`")

    def response(self, column: str) -> str:
        """The text of a column that is the row's response.

        Raises:
            UserError: null, blank or not text.
        """
        if not self.has_text(column):
            value = self.get(column)
            what = "blank" if isinstance(value, str) else kind(value)
            raise self.no_response(f"`{self.name(column)}` is {what}")
        return self.text(column)

    def wrong(self, what: str) -> UserError:
        """An error that names the row."""
        return UserError(f"{self.source}: {what}")

    def no_response(self, why: str, mend: str = "Fill it in, or leave the row out.") -> UserError:
        """The error of a row that has nothing to train on."""
        return UserError(f"{self.source} has no response: {why}. {mend}")

    def refuse_the_rest(self, texts: Collection[str], passed: Collection[str] = ()) -> None:
        """Refuse the row if a column with a meaning has not been used.

        Args:
            texts: the row's texts.
            passed: our names of columns that may be left.

        Raises:
            UserError: all such columns are named.
        """
        left = {
            name: value
            for name, value in self.values.items()
            if name not in self._used and canonical(name) not in passed
        }
        refuse_columns(self.source, left, self._used, texts)

    def mark(self, name: str) -> None:
        """Count a column as used, by its own name."""
        self._used.add(name)

    def _options(self) -> list[str]:
        """Columns `A`, `B`, ... or `option_1`, `option_2`, ...: one for each answer, in order.

        Raises:
            UserError: one is missing between others.
        """
        found: dict[str, dict[int, str]] = {}
        for name in self.values:
            if match := _OPTION.fullmatch(name.strip()):
                style, place = match[1].lower(), match[2]
                number = int(place) if place.isdigit() else ord(place.lower()) - ord("a")
                numbered = f"{style}:{'n' if place.isdigit() else 'a'}"
                if style or not place.isdigit():
                    found.setdefault(numbered, {})[number] = name
        for places in found.values():
            first = min(places)
            if len(places) < 2 or first > 1 or (first == 1 and not places[first][-1].isdigit()):
                continue
            missing = [n for n in range(first, max(places)) if n not in places]
            if not missing:
                return [places[n] for n in sorted(places)]
        return []


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, Mapping | list) and not value:
        return "empty"
    names = {"dict": "an object", "list": "a list", "str": "text", "bool": "true or false"}
    name = type(value).__name__
    return names.get(name, f"of type {name}")


def shown(value: Any) -> str:
    """A value for a message: its first 60 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return kind(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[Any]) -> str:
    """Names for a message."""
    return ", ".join(f"`{name}`" for name in names) or "(none)"


def text(source: str, value: Any, what: str) -> str:
    """A value as text.

    Raises:
        UserError: it is none, or holds half of a character, which no file in UTF-8 can.
    """
    if not isinstance(value, str):
        raise UserError(f"{source}: {what} is {kind(value)}, expected text. Write it as text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UserError(
            f"{source}: {what} holds {half} at character {error.start + 1}, half of a surrogate "
            "pair, which is no character. Write the whole character, or take it out."
        ) from None
    return value
