"""A file's shape, recognised by the columns of its first row, and its rows to `Example`s.

The shapes themselves stand in `nacd.data.shapes`. What a row says beside its shape is looked up in
`nacd.data.keys`, and refused if it has a meaning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nacd.data.choices import Answers, ChoiceForm, Question, answered
from nacd.data.example import Example
from nacd.data.keys import COLUMNS, absent, canonical
from nacd.data.row import Row, kind, listed, text
from nacd.data.shapes import SHAPES, Shape, refuse_doubled
from nacd.data.stored import Examples
from nacd.errors import UserError


@dataclass(frozen=True)
class Schema:
    """One file's shape, and the user's own names for its columns."""

    shape: Shape
    columns: Mapping[str, str]
    """Our name -> the file's."""
    ignore: Collection[str] = ()
    """Names of columns, and of keys of turns, that the user wants ignored."""
    group: str = ""
    """Column that names a row's group, if any."""

    def examples(
        self,
        rows: Iterable[tuple[str, Any]],
        *,
        choice_form: ChoiceForm = "cloze",
        answers: Answers = "auto",
    ) -> Examples:
        """Turn all rows of a file into Examples.

        Args:
            rows: at least one pair of (where the row came from, the row).
            choice_form: how a multiple-choice row becomes text.
            answers: how a multiple-choice row names its answer.

        Raises:
            UserError: a row is of another shape, lacks a response, or says more than can be used;
                it is named.
        """
        examples = Examples()
        questions: list[Question] = []
        never = set(self.columns)
        source = ""
        for source, values in rows:
            row = Row(source, values, self.columns, self.ignore)
            never -= {name for name in never if name in row}
            made = self._converted(row)
            group = self._group(row, values)
            if isinstance(made, Question):
                questions.append(replace(made, group=group))
            else:
                examples.append(replace(made, group=group) if group else made)
        for name in never:
            raise UserError(
                f"no row has the column {self.columns[name]!r}, which --columns "
                f"{name}={self.columns[name]} asks for (the last is {source}). Mend the flag."
            )
        if questions:
            examples = answered(questions, choice_form, answers)
        refuse_doubled(examples)
        return examples

    def _converted(self, row: Row) -> Example | Question:
        self._check_shape(row)
        made = self.shape.convert(row)
        texts = made.texts if isinstance(made, Question) else [m.content for m in made.messages]
        if self.group:
            row.mark(self.group)
        # who maps a shape's columns passes over the conversation beside them
        mapped = any(name in self.columns for name in self.shape.required)
        row.refuse_the_rest(texts, ("messages", "conversations") if mapped else ())
        return made

    def _check_shape(self, row: Row) -> None:
        required = self.shape.required
        missing = [name for name in required if name not in row]
        for name in missing:
            if name in self.columns:
                raise _no_column(row, name, self.columns[name])
        said = [name for name in required if not absent(row.get(name))]
        if missing == [self.shape.response] and said:
            raise row.no_response(f"`{missing[0]}` is missing")
        if missing or (not said and _full(row, SHAPES)):
            raise UserError(
                f"{row.source} is of another shape: it has the columns {listed(row.values)}, but "
                f"the first row is {self.shape.description}. Put rows of one shape in a file."
            )

    def _group(self, row: Row, values: Mapping[str, Any]) -> str:
        if not self.group:
            return ""
        if self.group not in values:
            raise UserError(
                f"{row.source} has no column {self.group!r} (--group-column); it has "
                f"{listed(values)}. Name one that every row has."
            )
        value = values[self.group]
        if isinstance(value, Mapping | list | tuple):
            raise row.wrong(
                f"`{self.group}` (--group-column) is {kind(value)}, expected a name. Choose "
                "another column."
            )
        return text(row.source, str(value), f"`{self.group}`")


def recognise(
    source: str,
    values: Any,
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
    group: str = "",
) -> Schema:
    """Decide a file's shape from its first row.

    Args:
        source: the row's place, `mine.jsonl:1`.
        values: the row, as parsed.
        columns: canonical column name -> the file's own name.
        ignore: names of columns, and of keys of turns, to be read as if they were not there.
        group: column that names a row's group, if any.

    Raises:
        UserError: no known shape fits; the message lists the columns seen and the shapes known.
    """
    mapped: dict[str, str] = {}
    for name, own in (columns or {}).items():
        ours = canonical(name)
        if ours is None or ours in mapped:
            raise UserError(
                f"--columns names {name!r}, which is no column of a known shape: "
                f"expected {', '.join(COLUMNS)}."
                if ours is None
                else f"--columns names {ours!r} twice. Keep one."
            )
        if own in ignore:
            raise UserError(f"--columns {name}={own} and --ignore-columns {own}: keep one.")
        mapped[ours] = own
    row = Row(source, values, mapped, ignore)
    candidates = [shape for shape in SHAPES if mapped.keys() <= set(shape.columns)]
    fits = [shape for shape in candidates if all(name in row for name in shape.required)]
    if fits:
        return Schema((_full(row, fits) or fits)[0], mapped, ignore, group)
    for name, own in mapped.items():
        if name not in row and any(name in shape.required for shape in candidates):
            raise _no_column(row, name, own)
    given = " ".join(f"{name}={own}" for name, own in mapped.items())
    under = f" with --columns {given}" if given else ""
    raise UserError(
        f"{source} has the columns {listed(row.values)}, which is no known shape{under}."
        f"{_near(row, candidates)} Known: {'; '.join(shape.description for shape in SHAPES)}. "
        "Rename the columns, or map them, ours first: --columns instruction=... output=..."
    )


def looks_like_a_row(values: Mapping[str, Any]) -> bool:
    """Whether an object has the columns of a known shape."""
    names = {canonical(str(name)) for name in values}
    return "chosen" in values or any(names >= set(shape.required) for shape in SHAPES)


def _no_column(row: Row, name: str, own: str) -> UserError:
    return UserError(
        f"{row.source} has no column {own!r}, which --columns {name}={own} asks for: it has "
        f"{listed(row.values)}. Our name comes first: --columns instruction=question."
    )


def _full(row: Row, shapes: Iterable[Shape]) -> list[Shape]:
    """The shapes all of whose columns say something; a union has nulls for every other shape."""
    return [s for s in shapes if not any(absent(row.get(name)) for name in s.required)]


def _near(row: Row, candidates: Sequence[Shape]) -> str:
    if "chosen" in row.values:
        mend = "write it as turns, or as `prompt` and `completion`"
        if "prompt" in row:
            mend = "--columns prompt=prompt completion=chosen"
        elif isinstance(row.values["chosen"], list):
            mend = "--columns messages=chosen"
        return f" It looks like a preference; to train on what was chosen: {mend}."
    for shape in candidates:  # a first row that only lacks its response
        prompts = [name for name in shape.required if name != shape.response]
        if prompts and all(name in row for name in prompts):
            return f" It looks like {shape.description}, without `{shape.response}`."
    return ""
