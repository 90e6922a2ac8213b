"""The shapes that a row can have, and its way to an `Example`.

    messages        [{role, content}, ...], the last one the assistant's
    conversations   ShareGPT: [{from, value}, ...]
    prompt          with `completion`: two strings, or two lists of messages
    instruction     Alpaca: with `output`, and `input` and `history` or not
    question        multiple choice: with `choices` (or a column for each) and `answer`

Any of them may have a `system` column, two strings aside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nacd.data.choices import Question, question
from nacd.data.example import Example, Message
from nacd.data.keys import absent
from nacd.data.row import Row, kind, shown, text
from nacd.data.turns import Turn, conversation, turns_of, with_system
from nacd.errors import UserError


@dataclass(frozen=True)
class Shape:
    """One shape, by our names of its columns."""

    description: str
    required: tuple[str, ...]
    response: str
    """The column that is missing where a row has nothing to train on."""
    convert: Callable[[Row], Example | Question]
    optional: tuple[str, ...] = ("system",)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that a row may have."""
        return self.required + self.optional


def refuse_doubled(examples: Sequence[Example]) -> None:
    """Refuse text rows whose completions hold their prompts: joined, all would stand twice.

    Raises:
        UserError: all of two rows or more; of one alone the answer may begin so by chance.
    """
    count = 0
    for example in examples:
        said, answer = example.prompt, example.response
        if example.verbatim and said.strip():
            if len(answer) <= len(said) or not answer.startswith(said):
                return
            count += 1
    if count > 1:
        raise UserError(
            f"{examples[0].source}: the completion begins with the whole prompt, as in all rows, "
            "and the two are joined as they are. Take the prompt out of the completions."
        )


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


SHAPES = (
    Shape("`messages`", ("messages",), "messages", _from_messages),
    Shape("`conversations` (ShareGPT)", ("conversations",), "conversations", _from_conversations),
    Shape(
        "`prompt` and `completion`", ("prompt", "completion"), "completion", _from_prompt_completion
    ),
    Shape(
        "`instruction`, `input` (or none) and `output` (Alpaca)",
        ("instruction", "output"),
        "output",
        _from_alpaca,
        ("input", "history", "system"),
    ),
    Shape(
        "`question`, `choices` (or `A`, `B`, ...) and `answerKey` (ARC) or `answer` (MMLU)",
        ("question", "choices", "answer"),
        "answer",
        question,
    ),
)
