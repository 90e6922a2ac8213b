"""Every column of a row and every key of a turn that has a meaning, in one list.

What a row says is used or refused, never dropped: converters read the columns that they know from a
`nacd.data.row.Row`, and whatever else stands in the row is looked up here. A name with a meaning is
refused, with the mend beside it; a name without one (`id`, `source`, `category`) is left out.

Names are compared by letters and digits alone, so that `system_prompt`, `systemPrompt` and
`System Prompt` are one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nacd.errors import UserError

COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": (),
    "conversations": (),
    "prompt": (),
    "completion": (),
    "instruction": (),
    "input": (),
    "output": (),
    "question": (),
    "choices": (),
    "answer": ("answerKey",),
    "system": ("system_prompt", "system_message", "system_instruction"),
    "history": (),
}
"""Columns that a converter may use, each with its other names."""

FLAGS = ("weight", "train", "training", "loss")
"""Keys of a turn that say whether it is trained on."""

_LONG = 20
"""Characters of a text that does not stand in another by chance."""


_CHOSEN = ("chosen", "preferred_output")
_REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")


@dataclass(frozen=True)
class Meaning:
    """What a group of names says, and what to do about it."""

    about: str
    mend: str
    names: tuple[str, ...] = ()
    """Names of columns, or of keys of a turn."""
    in_turns: tuple[str, ...] = ()
    """Names that have the meaning as keys of a turn alone."""


_OF_TURN = Meaning(
    "a text beside the turn's own", "Write it into the turn's text", in_turns=("text", "refusal")
)
_MEANINGS = (
    _OF_TURN,
    Meaning(
        "calls of tools",
        "Rows that need tools cannot be used: leave such rows out",
        (
            "tools",
            "functions",
            "tool_calls",
            "tool_call",
            "function_call",
            "function_calls",
            "tool_choice",
            "tool_responses",
            "tool_results",
            "available_tools",
            "tool_call_id",
        ),
    ),
    Meaning(
        "reasoning beside the text",
        "Write it into the response as your model's template wants it (`<think>...</think>`, say)",
        (
            "reasoning_content",
            "reasoning",
            "thinking",
            "thought",
            "thoughts",
            "think",
            "chain_of_thought",
            "cot",
            "cot_content",
            "rationale",
        ),
    ),
    Meaning(
        "more than text",
        "Only text can be trained on: leave such rows out",
        (
            "image",
            "images",
            "image_url",
            "image_path",
            "video",
            "videos",
            "audio",
            "audios",
            "media",
            "attachments",
        ),
    ),
    Meaning(
        "a preference",
        "Map the text to train on: --columns completion=chosen beside a `prompt`, --columns "
        "messages=chosen where `chosen` is a whole conversation",
        (*_CHOSEN, *_REJECTED),
    ),
    Meaning(
        "a judgement of the row",
        "Keep the rows that are to be trained on, and take the column out",
        ("label", "labels", "kto_tag"),
    ),
    Meaning(
        "a weight or a mask of the loss",
        "Say of every assistant turn whether it is trained on: `train`, true or false",
        (
            *FLAGS,
            "weights",
            "sample_weight",
            "loss_weight",
            "loss_scale",
            "loss_mask",
            "train_mask",
            "train_detail",
            "training_detail",
            "trainable",
            "mask",
            "masked",
            "completion_mask",
            "assistant_masks",
        ),
    ),
    Meaning(
        "a text that the prompt needs",
        "Write it into the prompt (beside `instruction`, map it: --columns input={name})",
        (
            "context",
            "contexts",
            "ctx",
            "passage",
            "passages",
            "article",
            "document",
            "documents",
            "paragraph",
            "background",
            "premise",
            "story",
            "hint",
            "query",
            "suffix",
            "chat_history",
            "dialog_history",
            "conversation_history",
        ),
    ),
    Meaning(
        "settings of the chat template",
        "All rows are rendered by the template as it is: leave such rows out",
        ("chat_template", "chat_template_kwargs"),
    ),
    Meaning("who speaks", "Write it into the turn's text", in_turns=("name", "channel")),
    Meaning(
        "a text beside the row's own",
        "Write it into the prompt or the response, or name the columns of one shape by --columns",
        (*COLUMNS, *(other for others in COLUMNS.values() for other in others), "response"),
    ),
)


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """A name by its letters and digits alone, in lower case."""
    return re.sub(r"[\W_]+", "", name).casefold()


_CANONICAL = {plain(name): own for own, others in COLUMNS.items() for name in (own, *others)}
_ROW = {plain(name): meaning for meaning in _MEANINGS for name in meaning.names}
_TURN = {plain(name): meaning for meaning in _MEANINGS for name in meaning.in_turns} | {
    name: _OF_TURN if meaning.about.startswith("a text") else meaning
    for name, meaning in _ROW.items()
    if name not in FLAGS
}
_PLAIN_CHOSEN, _PLAIN_REJECTED = ({plain(n) for n in names} for names in (_CHOSEN, _REJECTED))


def canonical(name: str) -> str | None:
    """Our own name of a column that a converter may use; None for any other."""
    return _CANONICAL.get(plain(name))


def has_meaning(name: str) -> bool:
    """Whether a column of this name is used or refused."""
    return plain(name) in _ROW


def absent(value: Any, depth: int = 8) -> bool:
    """Whether a value says nothing: null, NaN, blank text, or a list or object of such alone.

    Parquet and hub data sets write a null for every key that any other row has; a table spells out
    an empty list as text.
    """
    if value is None or (isinstance(value, float) and value != value):
        return True
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if depth and isinstance(value, Mapping):
        return all(absent(inner, depth - 1) for inner in value.values())
    if depth and isinstance(value, list | tuple):
        return all(absent(inner, depth - 1) for inner in value)
    return False


def refuse_columns(
    source: str, left: Mapping[str, Any], used: Collection[str], texts: Collection[str]
) -> None:
    """Refuse a row whose columns say more than was read of it.

    Args:
        source: the row's place.
        left: the columns that no converter has read.
        used: the names of those that one has.
        texts: the row's texts; a column that only repeats them is no loss.

    Raises:
        UserError: columns with a meaning are left; all of them are named.
    """
    chosen = any(plain(name) in _PLAIN_CHOSEN for name in used)
    found = {
        name: _ROW[plain(name)]
        for name, value in left.items()
        if plain(name) in _ROW
        and not absent(value)
        and not (chosen and plain(name) in _PLAIN_REJECTED)
        and not _repeats(value, texts)
    }
    if found:
        raise _refused(source, found)


def refuse_keys(source: str, place: str, turn: Mapping[str, Any], texts: Collection[str]) -> None:
    """Refuse a turn whose keys say more than its role, its text and whether it is trained on.

    Args:
        source: the row's place.
        place: the turn's place in the row.
        turn: the keys of the turn that are not to be ignored.
        texts: the turn's text, if it has one.

    Raises:
        UserError: keys with a meaning are left; all of them are named.
    """
    found = {
        name: _TURN[plain(name)]
        for name, value in turn.items()
        if plain(name) in _TURN and not absent(value) and not _repeats(value, texts)
    }
    if found:
        raise _refused(f"{source}: {place}", found)


def _repeats(value: Any, texts: Collection[str]) -> bool:
    """Whether all that a value says stands in the texts already."""
    if isinstance(value, str):
        text = value.strip()
        return any(text == t.strip() or (len(text) >= _LONG and text in t) for t in texts)
    if isinstance(value, Mapping):
        said = [value[key] for key in ("content", "value") if key in value]
        return bool(said) and all(_repeats(text, texts) for text in said)
    if isinstance(value, list | tuple):
        return all(_repeats(inner, texts) for inner in value)
    return False


def _refused(place: str, found: Mapping[str, Meaning]) -> UserError:
    said = ", ".join(f"`{name}` ({meaning.about})" for name, meaning in found.items())
    mends = dict.fromkeys(m.mend.format(name=name) for name, m in found.items())
    return UserError(
        f"{place} has {said}, which would be lost. {'. '.join(mends)}. If the rows are right "
        f"without: --ignore-columns {' '.join(found)}"
    )
