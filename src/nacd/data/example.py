"""The two forms of a training row: an `Example` (text) and an `Encoded` row (token ids)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    train: bool = True
    """Whether an assistant turn's tokens are labels, where every turn of a row is trained on: off
    for a turn that the data marks so, and for the turns of a `prompt` list. Of no meaning for other
    roles."""


@dataclass(frozen=True)
class Example:
    """One row of an instruction-tuning set, whatever shape it came in.

    The last message is the assistant's response, which is always a label; the one before it is the
    user's.
    """

    messages: tuple[Message, ...]
    source: str
    """Where the row came from, for messages to the user: `mine.jsonl:12`."""
    choices: tuple[str, ...] | None = None
    """Multiple choice: every answer as it would stand in the last message (cloze or letter)."""
    answer: int | None = None
    """Multiple choice: index of the right one in `choices`."""
    verbatim: bool = False
    """A `prompt`/`completion` row of plain strings: already written out, to be joined as it is."""
    group: str = ""
    """The row's group (a subject, a source), where a column names one."""

    @property
    def response(self) -> str:
        """The text of the last assistant message."""
        return self.messages[-1].content

    @property
    def prompt(self) -> str:
        """The text of the last user message."""
        return self.messages[-2].content

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the row's messages: names the row and decides its split."""
        text = "\x1e".join(f"{m.role}\x1f{m.content}" for m in self.messages)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Encoded:
    """A row as the model sees it."""

    ids: tuple[int, ...]
    """Token ids of the whole rendered row, special tokens included."""
    response: tuple[bool, ...]
    """True at every token that is a label (its prediction enters the loss)."""
    prompt: tuple[int, int]
    """Token positions [start, stop) wholly inside the last user turn: what may be learned."""
    shortened: int = 0
    """Earlier assistant turns, no labels, that the chat template writes without their beginning."""
    lead: str = ""
    """Words of the chat template's own that the last turn's labels begin with (Qwen3's empty block
    for reasoning): they stand behind the generation prompt, so that the model has to say them."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def response_tokens(self) -> int:
        """Number of label tokens."""
        return sum(self.response)
