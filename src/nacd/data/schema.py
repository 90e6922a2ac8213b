"""The shapes that a row can have, each recognised by its columns, and its way to an `Example`.

    messages        [{role, content}, ...], the last one the assistant's
    conversations   ShareGPT: [{from, value}, ...]
    prompt          with `completion`: two strings, or two lists of messages
    instruction     Alpaca: with `output`, and `input` and `history` or not
    question        multiple choice: with `choices` (or a column for each) and `answer`

Any of them may have a `system` column. A file has one shape, decided by its first row. What else a
row says is looked up in `nacd.data.keys`, and refused if it has a meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nacd.data.choices import Answers, ChoiceForm, Question, answered, question
from nacd.data.example import Example, Message
from nacd.data.keys import COLUMNS, absent, canonical
from nacd.data.row import Row, kind, listed, shown, text
from nacd.data.turns import Turn, conversation, turns_of, with_system
from nacd.errors import UserError


@dataclass(frozen=True)
class Schema:
    """One file's shape, and the user's own names for its columns."""

    shape: _Shape
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
    ) -> list[Example]:
        """Turn all rows of a file into Examples.

        Args:
            rows: at least one pair of (where the row came from, the row).
            choice_form: how a multiple-choice row becomes text.
            answers: how a multiple-choice row names its answer.

        Raises:
            UserError: a row is of another shape, lacks a response, or says more than can be used;
                it is named.
        """
        examples: list[Example] = []
        questions: list[Question] = []
        groups: list[str] = []
        never = set(self.columns)
        source = ""
        for source, values in rows:
            row = Row(source, values, self.columns, self.ignore)
            never -= {name for name in never if name in row}
            made = self._converted(row)
            questions.append(made) if isinstance(made, Question) else examples.append(made)
            groups.append(self._group(row, values))
        for name in never:
            raise UserError(
                f"no row has the column {self.columns[name]!r}, which --columns "
                f"{name}={self.columns[name]} asks for (the last is {source}). Mend the flag."
            )
        if questions:
            examples = answered(questions, choice_form, answers)
        _refuse_doubled(examples)
        if not self.group:
            return examples
        return [replace(e, group=group) for e, group in zip(examples, groups, strict=True)]

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
        if missing or (not said and _full(row, _SHAPES)):
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
    candidates = [shape for shape in _SHAPES if mapped.keys() <= set(shape.columns)]
    fits = [shape for shape in candidates if all(name in row for name in shape.required)]
    if fits:
        return Schema((_full(row, fits) or fits)[0], mapped, ignore, group)
    for name, own in mapped.items():
        if name not in row and any(name in shape.required for shape in candidates):
            raise _no_column(row, name, own)
    raise UserError(
        f"{source} has the columns {listed(row.values)}, which is no known shape."
        f"{_near(row, candidates)} Known: {'; '.join(shape.description for shape in _SHAPES)}. "
        "Rename the columns, or map them, ours first: --columns instruction=... output=..."
    )


def looks_like_a_row(values: Mapping[str, Any]) -> bool:
    """Whether an object has the columns of a known shape."""
    names = {canonical(str(name)) for name in values}
    return "chosen" in values or any(names >= set(shape.required) for shape in _SHAPES)


def _no_column(row: Row, name: str, own: str) -> UserError:
    return UserError(
        f"{row.source} has no column {own!r}, which --columns {name}={own} asks for: it has "
        f"{listed(row.values)}. Our name comes first: --columns instruction=question."
    )


def _full(row: Row, shapes: Iterable[_Shape]) -> list[_Shape]:
    """The shapes all of whose columns say something; a union has nulls for every other shape."""
    return [s for s in shapes if not any(absent(row.get(name)) for name in s.required)]


def _near(row: Row, candidates: Sequence[_Shape]) -> str:
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


def _pair(row: Row, prompt: str, response: str) -> Example:
    return Example((Message("user", prompt), Message("assistant", response)), row.source)


def _from_messages(row: Row) -> Example:
    return conversation(row, turns_of(row, "messages", row.structure("messages")), "messages")


def _from_conversations(row: Row) -> Example:
    return conversation(
        row, turns_of(row, "conversations", row.structure("conversations")), "conversations"
    )


def _from_prompt_completion(row: Row) -> Example:
    prompt, completion = _turns_or_text(row.get("prompt")), _turns_or_text(row.get("completion"))
    if not isinstance(prompt, list) and not isinstance(completion, list):
        response = row.response("completion")
        if row.has_text("system"):
            raise row.wrong(
                f"`{row.name('system')}` stands beside a prompt and a completion of plain text, "
                "which are joined as they are. Write it into the prompt, or have the rows written "
                "by a template: --columns instruction=prompt output=completion"
            )
        return replace(_pair(row, row.text("prompt"), response), verbatim=True)
    if completion is None or completion == []:
        raise row.no_response(
            f"`{row.name('completion')}` is {'null' if completion is None else 'an empty list'}"
        )
    before = [] if prompt is None else _side(row, "prompt", prompt, "user")
    after = _side(row, "completion", completion, "assistant")
    for number, turn in enumerate(before, start=1):
        if turn.flag and turn.message.train and turn.message.role == "assistant":
            raise row.wrong(
                f"`{turn.flag}` of turn {number} of `{row.name('prompt')}` asks to train on it, "
                "and only the completion is trained on. Write the row as `messages`, or give "
                f"--ignore-columns {turn.flag}"
            )
    after = after[_repeated(row, before, after) :]
    quiet = [replace(turn, message=replace(turn.message, train=False)) for turn in before]
    return conversation(row, [*quiet, *after], "completion")


def _turns_or_text(value: Any) -> Any:
    """A list of turns, also where a table spells it out as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if all(isinstance(turn, Mapping) and turn.keys() & {"role", "from"} for turn in parsed):
            return parsed
    if isinstance(value, Mapping) and value.keys() & {"role", "from"}:
        return [value]
    return list(value) if isinstance(value, tuple) else value


def _side(row: Row, column: str, value: Any, role: str) -> list[Turn]:
    """One of the two columns as turns; a text is one turn."""
    if isinstance(value, list):
        return turns_of(row, column, value)
    return [Turn(Message(role, row.text(column)))]


def _repeated(row: Row, before: Sequence[Turn], after: Sequence[Turn]) -> int:
    """How many turns of the completion are the prompt's last ones once more."""

    def said(turn: Turn) -> tuple[str, str]:
        return turn.message.role, turn.message.content.strip()

    prompt, completion = [said(turn) for turn in before], [said(turn) for turn in after]
    for count in range(min(len(prompt), len(completion)), 0, -1):
        if completion[count - 1][0] == "user" and prompt[-count:] == completion[:count]:
            return count
    first = completion[0][0] if completion else "assistant"
    if prompt and (first == "system" or first == prompt[-1][0] == "user"):
        name = row.name("completion")
        raise row.wrong(
            f"`{name}` opens with a turn of the {first} that is not the prompt's. If it is the "
            f"whole conversation: --columns messages={name} --ignore-columns {row.name('prompt')}"
        )
    return 0


def _refuse_doubled(examples: Sequence[Example]) -> None:
    """Refuse text rows whose completions hold their prompts: joined, all would stand twice."""
    pairs = [(e.prompt, e.response) for e in examples if e.verbatim and e.prompt.strip()]
    doubled = [len(answer) > len(said) and answer.startswith(said) for said, answer in pairs]
    if len(pairs) > 1 and all(doubled):
        raise UserError(
            f"{examples[0].source}: the completion begins with the whole prompt, as in all rows, "
            "and the two are joined as they are. Take the prompt out of the completions."
        )


def _from_alpaca(row: Row) -> Example:
    response = row.response("output")
    instruction = row.text("instruction")
    if row.has_text("input"):
        instruction = f"{instruction}\n\n{row.text('input')}"
    pair = _pair(row, instruction, response)
    earlier = [] if absent(row.get("history")) else _history(row)
    return replace(pair, messages=tuple(with_system(row, [*earlier, *pair.messages])))


def _history(row: Row) -> list[Message]:
    """Earlier turns: a list of [user, assistant] pairs, which are trained on too."""
    history, name = row.structure("history"), row.name("history")
    if not isinstance(history, list | tuple):
        raise row.wrong(
            f"`{name}` is {kind(history)}, expected a list of [user, assistant] pairs of texts. "
            "Write it so."
        )
    messages = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise row.wrong(
                f"pair {number} of `{name}` is {shown(pair)}, expected a list of two texts, the "
                "user's and the assistant's. Write it so, or write the row as `messages`."
            )
        said, told = (text(row.source, t, f"a text of pair {number} of `{name}`") for t in pair)
        if not told.strip():
            raise row.no_response(f"the assistant's text of pair {number} of `{name}` is blank")
        messages += [Message("user", said), Message("assistant", told)]
    return messages


@dataclass(frozen=True)
class _Shape:
    description: str
    required: tuple[str, ...]
    response: str
    convert: Callable[[Row], Example | Question]
    optional: tuple[str, ...] = ("system",)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.required + self.optional


_SHAPES = (
    _Shape("`messages`", ("messages",), "messages", _from_messages),
    _Shape("`conversations` (ShareGPT)", ("conversations",), "conversations", _from_conversations),
    _Shape(
        "`prompt` and `completion`", ("prompt", "completion"), "completion", _from_prompt_completion
    ),
    _Shape(
        "`instruction`, `input` (or none) and `output` (Alpaca)",
        ("instruction", "output"),
        "output",
        _from_alpaca,
        ("input", "history", "system"),
    ),
    _Shape(
        "`question`, `choices` (or `A`, `B`, ...) and `answerKey` (ARC) or `answer` (MMLU)",
        ("question", "choices", "answer"),
        "answer",
        question,
    ),
)
