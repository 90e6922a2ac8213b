"""From an `Example` to a row of text, by the model's chat template or a raw text.

A chat template is foreign code: it may refuse a row or change it, and then a change of the row that
it accepts is looked for and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nacd.data.example import Example, Message
from nacd.data.written import FAULTS, NotWritten, Turns, Written
from nacd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAW_TEMPLATES = {
    "qa": "Question: {prompt}\nAnswer: {response}",
    "alpaca": "### Instruction:\n{prompt}\n\n### Response:\n{response}",
    "plain": "{prompt}\n{response}",
    "verbatim": "{prompt}{response}",
}


@dataclass(frozen=True, eq=False)
class Rendering:
    """One way to write rows as text for one tokenizer."""

    name: str
    """`chat`, a key of `RAW_TEMPLATES`, or `custom`."""
    text: str | None
    """A raw template's text, `{prompt}` and `{response}` in it; None for `chat`."""
    tokenizer: PreTrainedTokenizerBase
    special: frozenset[int]
    """Ids of every special token; none is ever learnable."""
    _decoded: dict[int, str] = field(default_factory=dict, repr=False)

    def row(self, example: Example) -> dict[str, Any]:
        """The row as it is exported: `prompt` and `completion`.

        Returns:
            Two strings for a raw template (spaces before the response belong to the completion, as
            tokenizers want it), two lists of `{role, content}` for `chat`: all messages but the
            last, and the last.

        Raises:
            UserError: several turns and a raw template.
        """
        if self.text is None:
            messages = _dicts(example.messages)
            return {"prompt": messages[:-1], "completion": messages[-1:]}
        prompt, completion, _ = self._raw(example)
        return {"prompt": prompt, "completion": completion}

    def written(self, example: Example) -> Written:
        """The row's text as it is tokenised, and where each message stands in it.

        Raises:
            UserError: as for `encode`.
        """
        if self.text is not None:
            prompt, completion, spans = self._raw(example)
            eos = str(self.tokenizer.eos_token)
            end = "" if completion.endswith(eos) else eos
            return Written(prompt + completion + end, spans, {})
        text = self._rendered(example, example.messages)
        try:
            return self._turns.locate(example.messages, text)
        except NotWritten as fault:
            raise self._unfit(example, fault.how, fault.mend) from None

    def replace_prompt(self, example: Example, text: str) -> Example:
        """The same row with another last user turn."""
        *earlier, user, response = example.messages
        return replace(example, messages=(*earlier, Message(user.role, text), response))

    def describe(self) -> dict[str, str]:
        """What a result records: the name, and a raw text or the chat template's SHA-256."""
        if self.text is not None:
            return {"name": self.name, "text": self.text}
        digest = hashlib.sha256(self.tokenizer.get_chat_template().encode()).hexdigest()
        return {"name": self.name, "sha256": digest}

    # Raw text

    def _raw(self, example: Example) -> tuple[str, str, tuple[tuple[int, int], ...]]:
        """The prompt's text, the completion's, and where each message stands in the two."""
        *earlier, user, response = example.messages
        if any(message.role != "system" for message in earlier):
            instead = "" if self.tokenizer.chat_template else ", with a --model that has one"
            raise UserError(
                f"{example.source} has several turns, which the raw template {self.name!r} cannot "
                f"write. Choose --template chat{instead}."
            )
        assert self.text is not None
        head, _, rest = self.text.partition("{prompt}")
        middle, _, tail = rest.partition("{response}")
        text, spans = head, []
        for message in (*earlier, user):
            spans.append((len(text), len(text) + len(message.content)))
            text += message.content + ("" if message is user else "\n\n")
        border = middle.rstrip(" ")
        start = len(text) + len(middle)
        spans.append((start, start + len(response.content)))
        completion = f"{middle[len(border) :]}{response.content}{tail}"
        return text + border, completion, tuple(spans)

    # Chat

    @cached_property
    def _turns(self) -> Turns:
        special = [str(self.tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.special)]
        return Turns(self._render, special)

    def _render(self, messages: Sequence[Message], opening: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                _dicts(messages), tokenize=False, add_generation_prompt=opening
            )
        )

    def _rendered(
        self, example: Example, messages: Sequence[Message], opening: bool = False
    ) -> str:
        try:
            return self._render(messages, opening)
        except FAULTS as error:
            mends = self._accepted(example.messages)
            raise self._unfit(example, f"refuses the row ({error})", mends) from None

    def _accepted(self, messages: Sequence[Message]) -> str:
        """What to change in a refused row for the template to accept it; empty if nothing helps."""
        for count in range(1, len(_MENDS) + 1):
            for mends in itertools.combinations(_MENDS.items(), count):
                mended = list(messages)
                for _, change in mends:
                    mended = change(mended)
                with contextlib.suppress(*FAULTS):
                    self._render(mended)
                    self._render(mended[:-1], True)
                    said = ", and ".join(mend for mend, _ in mends)
                    return said[0].upper() + said[1:]
        return ""

    def _unfit(self, example: Example, how: str, mend: str) -> UserError:
        """The model's chat template does not fit the row."""
        if not mend:
            roles = [m.role for m in example.messages if m.role != "system"]
            raw = "a raw --template (qa, alpaca, plain) or " if len(roles) == 2 else ""
            mend = f"Choose {raw}another --model, or mend the template (chat_template.jinja)"
        return UserError(f"{example.source}: the model's chat template {how}. {mend}.")


def _without_system(messages: list[Message]) -> list[Message]:
    """The words of system messages at the head of the user messages that follow them."""
    kept, words = [], ""
    for message in messages:
        if message.role == "system":
            words += f"{message.content}\n\n"
        elif message.role == "user":
            kept.append(Message("user", words + message.content))
            words = ""
        else:
            kept.append(message)
    return kept


def _joined(messages: list[Message]) -> list[Message]:
    """Messages of one role that follow each other, as one."""
    return [
        Message(role, "\n\n".join(message.content for message in group))
        for role, group in itertools.groupby(messages, key=lambda message: message.role)
    ]


def _opened(messages: list[Message]) -> list[Message]:
    """A user message before the first of the assistant's."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), 0)
    return [*messages[:first], Message("user", "?"), *messages[first:]]


_MENDS: dict[str, Callable[[list[Message]], list[Message]]] = {
    "put the words of a system message at the head of the user message that follows": (
        _without_system
    ),
    "join messages of one role that follow each other": _joined,
    "put a user message before the assistant's first": _opened,
}


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
