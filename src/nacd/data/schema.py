"""The shapes that a row can have, each recognised by its columns, and its way to an `Example`.

    messages        [{role, content}, ...], the last one the assistant's
    conversations   ShareGPT: [{from, value}, ...]
    prompt          with `completion`: two strings, or two lists of messages
    instruction     Alpaca: with `output`, and `input` or not
    question        multiple choice: with `choices` and `answerKey` (ARC) or `answer` (MMLU)

A file has one shape, decided by its first row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from nacd.data.example import Example, Message
from nacd.errors import UserError

ChoiceForm = Literal["cloze", "letter"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Schema:
    """One file's shape, and the user's own names for its columns."""

    shape: _Shape
    columns: Mapping[str, str]
    group: str = ""
    """Column that names a row's group, if any."""

    def example(self, source: str, row: Any, *, choice_form: ChoiceForm = "cloze") -> Example:
        """Turn one row into an Example.

        Raises:
            UserError: the row is of another shape or lacks a response; names `source`.
        """
        row = _renamed(source, row, self.columns)
        absent = [name for name in self.shape.required if name not in row]
        if absent == [self.shape.response]:
            raise _no_response(source, f"`{self._named(self.shape.response)}` is missing")
        if absent:
            raise UserError(
                f"{source} is of another shape: it has the columns {_listed(row)}, but the first "
                f"row is {self.shape.description}. Put rows of one shape in a file."
            )
        example = self.shape.convert(source, row, choice_form)
        if not self.group:
            return example
        if self.group not in row:
            raise UserError(
                f"{source} has no column {self.group!r} (--group-column); it has {_listed(row)}."
            )
        return replace(example, group=str(row[self.group]))

    def _named(self, column: str) -> str:
        return self.columns.get(column, column)


def recognise(
    source: str, row: Any, *, columns: Mapping[str, str] | None = None, group: str = ""
) -> Schema:
    """Decide a file's shape from its first row.

    Args:
        source: the row's place, `mine.jsonl:1`.
        row: the row, as parsed.
        columns: canonical column name -> the file's own name.
        group: column that names a row's group, if any.

    Raises:
        UserError: no known shape fits; the message lists the columns seen and the shapes known.
    """
    columns = dict(columns or {})
    for name in columns:
        if name not in _CANONICAL:
            raise UserError(
                f"--columns names {name!r}, which is no column of a known shape: "
                f"expected {', '.join(_CANONICAL)}."
            )
    own = row
    row = _renamed(source, row, columns)
    candidates = [shape for shape in _SHAPES if columns.keys() <= set(shape.columns)]
    for shape in candidates:
        if all(name in row for name in shape.required):
            return Schema(shape, columns, group)
    for shape in candidates:  # a first row that only lacks its response
        prompts = [name for name in shape.required if name != shape.response]
        if prompts and all(name in row for name in prompts):
            near = f" It looks like {shape.description}, without `{shape.response}`."
            break
    else:
        near = ""
    shapes = "; ".join(shape.description for shape in _SHAPES)
    raise UserError(
        f"{source} has the columns {_listed(own)}, which is no known shape.{near} "
        f"Known: {shapes}. Rename the columns, or map them: --columns instruction=... output=..."
    )


def _renamed(source: str, row: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(
            f"{source} is not a JSON object ({type(row).__name__}): expected a row with named "
            "columns. Mend or delete it."
        )
    for canonical, own in columns.items():
        if own not in row:
            raise UserError(
                f"{source} has no column {own!r}, which --columns {canonical}={own} asks for: "
                f"it has {_listed(row)}. Our name comes first: --columns instruction=question."
            )
    taken = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {canonical: row[own] for canonical, own in columns.items()}


def _listed(row: Iterable[Any]) -> str:
    return ", ".join(f"`{name}`" for name in row) or "(none)"


def _no_response(source: str, why: str) -> UserError:
    return UserError(f"{source} has no response: {why}. Fill it in or delete the row.")


def _text(source: str, value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    raise UserError(
        f"{source}: `{column}` is {_kind(value)}, expected text. Mend or delete the row."
    )


def _response(source: str, value: Any, column: str) -> str:
    if value is None:
        raise _no_response(source, f"`{column}` is null")
    if not _text(source, value, column).strip():
        raise _no_response(source, f"`{column}` is blank")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _structure(value: Any) -> Any:
    """The value itself, or what a cell of a CSV file spells out as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _turn(source: str, turn: Any, column: str, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
        raise UserError(
            f"{source}: `{column}` must be a list of objects with `{role_key}` and `{text_key}`. "
            "Mend or delete the row."
        )
    role = _ROLES.get(str(turn[role_key]).lower())
    if role is None:
        raise UserError(
            f"{source}: `{column}` has a turn by {turn[role_key]!r}; expected "
            f"{', '.join(_ROLES)}. Delete the row, or the turn."
        )
    content = turn[text_key]
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if role == "assistant" and content is None:
        raise _no_response(source, f"an assistant turn's `{text_key}` is null")
    return Message(role, _text(source, content, f"{column}.{text_key}"))


def _turns(source: str, value: Any, column: str, keys: tuple[str, str]) -> tuple[Message, ...]:
    value = _structure(value)
    if not isinstance(value, list | tuple):
        raise UserError(
            f"{source}: `{column}` is {_kind(value)}, expected a list of turns. "
            "Mend or delete the row."
        )
    return tuple(_turn(source, turn, column, *keys) for turn in value)


def _conversation(source: str, messages: tuple[Message, ...], column: str) -> Example:
    if not messages:
        raise _no_response(source, f"`{column}` is an empty list")
    if messages[-1].role != "assistant":
        raise _no_response(source, f"`{column}` ends with a turn of the {messages[-1].role}")
    if not messages[-1].content.strip():
        raise _no_response(source, "the last assistant turn is blank")
    if len(messages) < 2 or messages[-2].role != "user":
        raise UserError(
            f"{source}: `{column}` has no user turn before its last assistant turn. "
            "Mend or delete the row."
        )
    return Example(messages, source)


def _pair(source: str, prompt: str, response: str) -> Example:
    return Example((Message("user", prompt), Message("assistant", response)), source)


def _from_messages(source: str, row: Mapping[str, Any], _: ChoiceForm) -> Example:
    turns = _turns(source, row["messages"], "messages", ("role", "content"))
    return _conversation(source, turns, "messages")


def _from_conversations(source: str, row: Mapping[str, Any], _: ChoiceForm) -> Example:
    value = _structure(row["conversations"])
    chatml = isinstance(value, list) and bool(value) and "role" in value[0]
    keys = ("role", "content") if chatml else ("from", "value")
    turns = _turns(source, value, "conversations", keys)
    return _conversation(source, turns, "conversations")


def _from_prompt_completion(source: str, row: Mapping[str, Any], _: ChoiceForm) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if completion is None or completion == []:
        raise _no_response(source, "`completion` is " + ("null" if completion is None else "empty"))
    if isinstance(prompt, list | tuple) or isinstance(completion, list | tuple):
        keys = ("role", "content")
        before = _turns(source, prompt, "prompt", keys)
        turns = (
            *(replace(turn, train=False) for turn in before),
            *_turns(source, completion, "completion", keys),
        )
        return _conversation(source, turns, "completion")
    pair = _pair(
        source, _text(source, prompt, "prompt"), _response(source, completion, "completion")
    )
    return replace(pair, verbatim=True)


def _from_alpaca(source: str, row: Mapping[str, Any], _: ChoiceForm) -> Example:
    response = _response(source, row["output"], "output")
    instruction = _text(source, row["instruction"], "instruction")
    extra = row.get("input")
    if extra is not None and _text(source, extra, "input").strip():
        instruction = f"{instruction}\n\n{extra}"
    return _pair(source, instruction, response)


def _multiple_choice(
    source: str, row: Mapping[str, Any], form: ChoiceForm, answer_column: str
) -> Example:
    choices = _structure(row["choices"])
    labels: list[str] = []
    if isinstance(choices, Mapping):
        labels = [str(label) for label in choices.get("label") or ()]
        choices = choices.get("text")
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(
            f"{source}: `choices` must list 2 to {len(LETTERS)} answers, or be an object with "
            "`text` and `label` lists. Mend or delete the row."
        )
    texts = [_text(source, choice, "choices") for choice in choices]
    answer = _answer(source, row[answer_column], texts, labels, answer_column)
    return choice_example(source, _text(source, row["question"], "question"), texts, answer, form)


def choice_example(
    source: str, question: str, texts: Iterable[str], answer: int, form: ChoiceForm
) -> Example:
    """A multiple-choice question as text, in cloze or letter form.

    Args:
        source: the row's place, for messages.
        question: the question without its options.
        texts: the options' texts.
        answer: index of the right option.
        form: `cloze`: the question is the prompt, the option's text the response; `letter`: the
            prompt lists the options under letters, the response is the letter.

    Raises:
        UserError: cloze form, and the right option is blank.
    """
    choices = tuple(texts)
    if form == "letter":
        letters = LETTERS[: len(choices)]
        lines = [f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True)]
        question, choices = "\n".join([question, *lines]), tuple(letters)
    elif not choices[answer].strip():
        raise _no_response(source, "the right choice is blank")
    pair = _pair(source, question, choices[answer])
    return Example(pair.messages, source, choices, answer)


def _answer(source: str, value: Any, texts: list[str], labels: list[str], column: str) -> int:
    """Index of the right choice, given by a row's label, a 0-based number, a letter or text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _no_response(source, f"`{column}` is {'null' if value is None else 'blank'}")
    key = str(value).strip()
    if labels:
        if len(labels) == len(texts) and labels.count(key) == 1:
            return labels.index(key)
        expected = f"one of its labels {', '.join(labels)}, one a choice"
    else:
        found: set[int] = set()
        if key.isdecimal() and int(key) < len(texts) and not isinstance(value, bool):
            found.add(int(key))
        if isinstance(value, str):
            if len(key) == 1 and key in LETTERS[: len(texts)]:
                return LETTERS.index(key)
            found.update([texts.index(value)] if texts.count(value) == 1 else ())
        if len(found) == 1:
            return found.pop()
        expected = f"0 to {len(texts) - 1}, A to {LETTERS[len(texts) - 1]}, or one choice's text"
        if found:
            expected += " (it is a place and another choice's text: give the letter)"
    raise UserError(f"{source}: `{column}` is {value!r}, expected {expected}. Mend the row.")


def _from_arc(source: str, row: Mapping[str, Any], form: ChoiceForm) -> Example:
    return _multiple_choice(source, row, form, "answerKey")


def _from_mmlu(source: str, row: Mapping[str, Any], form: ChoiceForm) -> Example:
    return _multiple_choice(source, row, form, "answer")


@dataclass(frozen=True)
class _Shape:
    description: str
    required: tuple[str, ...]
    response: str
    convert: Callable[[str, Mapping[str, Any], ChoiceForm], Example]
    optional: tuple[str, ...] = ()

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
        ("input",),
    ),
    _Shape(
        "`question`, `choices` and `answerKey` (ARC)",
        ("question", "choices", "answerKey"),
        "answerKey",
        _from_arc,
    ),
    _Shape(
        "`question`, `choices` and `answer` (MMLU)",
        ("question", "choices", "answer"),
        "answer",
        _from_mmlu,
    ),
)

_CANONICAL = tuple(dict.fromkeys(name for shape in _SHAPES for name in shape.columns))
