"""Turns, `{role, content}` or ShareGPT's `{from, value}`, to messages: as a whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nacd.data.example import Example, Message
from nacd.data.keys import FLAGS, absent, plain, refuse_keys
from nacd.data.row import Row, kind, shown, text

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_OF_TOOLS = (
    "tool",
    "tools",
    "function",
    "functioncall",
    "functionresponse",
    "toolcall",
    "toolcalls",
    "toolresponse",
    "toolresult",
    "observation",
    "ipython",
)
_TEXT_PARTS = (None, "text", "input_text", "output_text")


@dataclass(frozen=True)
class Turn:
    """One turn, and the key that says whether it is trained on; empty where none does."""

    message: Message
    flag: str = ""


def turns_of(row: Row, column: str, value: Any) -> list[Turn]:
    """The turns of a column.

    Args:
        row: the row.
        column: our name of the column.
        value: its value.

    Raises:
        UserError: no list of turns, or a turn that says more than can be used.
    """
    name = row.name(column)
    if not isinstance(value, list | tuple):
        raise row.wrong(
            f"`{name}` is {kind(value)}, expected a list of turns, each an object with `role` and "
            "`content`. Write it as one."
        )
    return [_turn(row, turn, f"turn {n} of `{name}`") for n, turn in enumerate(value, start=1)]


def conversation(row: Row, turns: Sequence[Turn], column: str) -> Example:
    """A row of several turns, with the row's system column before them.

    Args:
        row: the row.
        turns: its turns.
        column: our name of the column that they end in.

    Raises:
        UserError: there is nothing to train on at its end, or an empty turn is trained on.
    """
    name = f"`{row.name(column)}`"
    if not turns:
        raise row.no_response(f"{name} is an empty list")
    last = turns[-1]
    if last.message.role != "assistant":
        mend = "Add the assistant's answer, or take out the turns after its last one."
        if "chosen" in row.values:
            mend = f"To train on what was chosen: --columns prompt={row.name(column)} "
            mend += "completion=chosen"
        raise row.no_response(f"{name} ends with a turn of the {last.message.role}", mend)
    if not last.message.train:
        if not any(t.message.train for t in turns if t.message.role == "assistant"):
            raise row.no_response(
                f"`{last.flag}` says that no turn of the assistant is trained on",
                "Leave the row out, set the flag of a turn, or give --ignore-columns " + last.flag,
            )
        raise row.no_response(
            f"`{last.flag}` says that the last turn of {name} is not trained on",
            "Take out what stands after the last turn that is (nothing is learned from it), or "
            f"give --ignore-columns {last.flag}",
        )
    if not last.message.content.strip():
        raise row.no_response(f"the last assistant turn of {name} is blank")
    for number, turn in enumerate(turns, start=1):
        blank = turn.message.role == "assistant" and not turn.message.content.strip()
        if blank and turn.message.train:
            raise row.no_response(
                f"turn {number} of {name}, the assistant's, is blank",
                "Fill it in, or say that it is not trained on (`train`: false).",
            )
    messages = with_system(row, [turn.message for turn in turns])
    if len(messages) < 2 or messages[-2].role != "user":
        raise row.wrong(
            f"{name} has no user turn right before its last assistant turn. Put the turns in "
            "order, and join turns of the assistant that follow each other."
        )
    return Example(tuple(messages), row.source)


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """The messages, opened by the row's system column, if it has one.

    Raises:
        UserError: the column is no text, or a system turn says something else.
    """
    if not row.has_text("system"):
        return messages
    system = row.text("system")
    rest = [m for m in messages if m.role != "system" or m.content.strip()]
    there = [message.content.strip() for message in rest if message.role == "system"]
    if not there:
        return [Message("system", system), *rest]
    if there != [system.strip()]:
        raise row.wrong(
            f"`{row.name('system')}` and the system turn say different things. Write both into the "
            f"turn, or leave the column out: --ignore-columns {row.name('system')}"
        )
    return rest


def _turn(row: Row, turn: Any, place: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise row.wrong(
            f"{place} is {kind(turn)}, expected an object with `role` and `content`, or `from` and "
            "`value`. Write it as one, or take it out if it says nothing."
        )
    turn = {str(k): value for k, value in turn.items() if k not in row.ignore}
    _, role = _one_of(row, turn, ("role", "from"), place)
    text_key, content = _one_of(row, turn, ("content", "value"), place)
    if not turn.keys() & {"role", "from"} or not turn.keys() & {"content", "value"}:
        raise row.wrong(
            f"{place} has the keys {', '.join(f'`{k}`' for k in turn) or '(none)'}, expected "
            "`role` and `content`, or `from` and `value`. Rename them."
        )
    content = _joined(row, content, place)
    refuse_keys(row.source, place, turn, [content] if isinstance(content, str) else [])
    ours = _role(row, role, place)
    if content is None and ours == "assistant":
        raise row.no_response(f"`{text_key or 'content'}` of {place} is null")
    flag, train = _flag(row, turn, ours, place)
    whole = text(row.source, content, f"`{text_key or 'content'}` of {place}")
    return Turn(Message(ours, whole, train), flag)


def _one_of(
    row: Row, turn: Mapping[str, Any], keys: tuple[str, str], place: str
) -> tuple[str, Any]:
    """The key that is there, and its value; a null counts as absent beside the other."""
    said = [key for key in keys if turn.get(key) is not None]
    if len(said) == 2 and turn[keys[0]] != turn[keys[1]]:
        raise row.wrong(
            f"`{keys[0]}` and `{keys[1]}` of {place} say different things. Leave one out: "
            f"--ignore-columns {keys[1]}"
        )
    return (said[0], turn[said[0]]) if said else ("", None)


def _role(row: Row, role: Any, place: str) -> str:
    ours = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if ours is None and isinstance(role, str) and plain(role) in _OF_TOOLS:
        raise row.wrong(
            f"{place} is by {shown(role)}: calls of tools and what they return cannot be trained "
            "on. Leave such rows out."
        )
    if ours is None:
        raise row.wrong(
            f"{place} is by {shown(role)}, expected one of {', '.join(_ROLES)}. Write whose turn "
            "it is, or leave the row out."
        )
    return ours


def _joined(row: Row, content: Any, place: str) -> Any:
    """The text of a list of parts; anything else as it is."""
    if not isinstance(content, list | tuple):
        return content
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise row.wrong(f"{place} has a part that is {kind(part)}. Write its text alone.")
        if part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise row.wrong(
                f"{place} has a part of type {shown(part.get('type'))}, and only text can be used. "
                "Write what it says into the text, or leave such rows out."
            )
        taken = {"type", "text", *row.ignore}
        said = {str(key): value for key, value in part.items() if key not in taken}
        refuse_keys(row.source, f"a part of {place}", said, [part["text"]])
        texts.append(part["text"])
    return "".join(texts)


def _flag(row: Row, turn: Mapping[str, Any], role: str, place: str) -> tuple[str, bool]:
    """The key that says whether a turn is trained on, and what it says: yes where there is none."""
    said = {key: value for key, value in turn.items() if plain(key) in FLAGS and not absent(value)}
    for key, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise row.wrong(
                f"`{key}` of {place} is {shown(value)}, expected 0, 1, true or false. A turn is "
                f"trained on or not: write which, or give --ignore-columns {key}"
            )
    if len({bool(value) for value in said.values()}) > 1:
        raise row.wrong(
            f"{' and '.join(f'`{key}`' for key in said)} of {place} say different things. Keep "
            "one, or give --ignore-columns with the other."
        )
    if not said:
        return "", True
    key, value = next(iter(said.items()))
    if value and role != "assistant":
        raise row.wrong(
            f"`{key}` of {place} asks to train on a turn of the {role}, and only the assistant's "
            f"are trained on. Write {'false' if value is True else 0}, or give --ignore-columns "
            f"{key}"
        )
    return key, bool(value)
