"""From an `Example` to a row of text and to token ids, by the model's chat template or a raw text.

What flows out agrees with TRL's SFTTrainer to the token: `Template.encode` gives the ids and the
label mask that the trainer makes of `Template.row` under its completion-only loss (trl 1.x,
`SFTTrainer._prepare_dataset`): an end-of-sequence text behind a raw completion, and labels from
where the tokenised whole parts from the tokenised prompt. On top of that it finds the tokens that
may be learned: those wholly inside the content of the last user turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from nacd.data.example import Encoded, Example, Message
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
class Template:
    """One way to write rows for one tokenizer; made by `make_template`."""

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
        return dict(zip(("prompt", "completion"), self._raw(example)[:2], strict=True))

    def encode(self, example: Example, turns: Literal["all", "last"] = "all") -> Encoded:
        """The row as token ids, with its labels and its learnable span.

        Args:
            example: the row.
            turns: which assistant turns of a conversation are labels: `all` whose `train` is set,
                or the `last` alone, which is what TRL makes of `row(example)`; with one assistant
                turn the two are the same.

        Raises:
            UserError: the chat template refuses the row, or does not show its turns as they are.
        """
        if self.text is None:
            return self._encode_chat(example, turns)
        return self._encode_raw(example)

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

    def _raw(self, example: Example) -> tuple[str, str, int]:
        """The prompt's text, the completion's, and where the user's content starts."""
        *earlier, user, _ = example.messages
        if len(earlier) > 1 or any(message.role != "system" for message in earlier):
            raise UserError(
                f"{example.source} has several turns, which the raw template {self.name!r} cannot "
                "write. Choose --template chat (with a model that has a chat template), or delete "
                "the earlier turns."
            )
        assert self.text is not None
        head, _, rest = self.text.partition("{prompt}")
        middle, _, tail = rest.partition("{response}")
        system = "".join(f"{message.content}\n\n" for message in earlier)
        border = middle.rstrip(" ")
        prompt = f"{head}{system}{user.content}{border}"
        completion = f"{middle[len(border) :]}{example.response}{tail}"
        return prompt, completion, len(head) + len(system)

    def _encode_raw(self, example: Example) -> Encoded:
        prompt, completion, start = self._raw(example)
        eos = str(self.tokenizer.eos_token)
        if not completion.endswith(eos):
            completion += eos
        text = prompt + completion
        ids, spans = self._tokens(text, special=True)
        prompt_ids = self.tokenizer(text=prompt, verbose=False)["input_ids"]
        labels = [(_common_prefix(prompt_ids, ids), len(ids))]
        return self._encoded(ids, spans, labels, (start, start + len(example.prompt)))

    # Chat

    def _encode_chat(self, example: Example, turns: Literal["all", "last"]) -> Encoded:
        messages = example.messages
        text = self._render(example, messages)
        ids, spans = self._tokens(text, special=False)
        if ids != self._chat_ids(example, messages):
            raise UserError(
                f"{example.source}: tokenising the rendered chat gives other ids than the "
                "tokenizer's own apply_chat_template. Choose a raw --template (qa, alpaca, plain)."
            )
        last = len(messages) - 1
        labels = []
        earlier = range(last) if turns == "all" else range(0)
        for index in earlier:
            if messages[index].role == "assistant" and messages[index].train:
                labels.append(self._earlier_turn(example, index, text, ids, spans))
        labels.append((self._turn_start(example, last, ids), len(ids)))
        content = self._content_span(example, last - 1, text)
        return self._encoded(ids, spans, labels, content)

    def _turn_start(self, example: Example, index: int, ids: Sequence[int]) -> int:
        before = example.messages[:index]
        if not before:  # a conversation that the assistant opens
            return 0
        prompt_ids = self._chat_ids(example, before, add_generation_prompt=True)
        return _common_prefix(prompt_ids, ids)

    def _earlier_turn(
        self,
        example: Example,
        index: int,
        text: str,
        ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
    ) -> tuple[int, int]:
        """The label tokens [start, stop) of an earlier assistant turn.

        It starts where the generation prompt ends. It stops after what the template writes behind
        the last assistant turn (`<|im_end|>`), as far as that stands behind this one too. Templates
        may write an earlier turn otherwise than a last one (Qwen3 drops its reasoning), so the
        conversation cut off after the turn cannot tell.
        """
        _, after = self._around(example, index, text)
        _, closing = self._around(example, len(example.messages) - 1, text)
        stop_character = len(text) - len(after) + _common_prefix(after, closing)
        start = self._turn_start(example, index, ids)
        stop = start
        while stop < len(ids) and spans[stop][1] <= stop_character:
            stop += 1
        if start == stop:
            raise UserError(
                f"{example.source}: the chat template does not show where assistant turn "
                f"{index + 1} begins. Keep one assistant turn a row, or choose another --template."
            )
        return start, stop

    def _render(self, example: Example, messages: Sequence[Message]) -> str:
        return self._apply(example, messages, tokenize=False)

    def _chat_ids(
        self, example: Example, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> list[int]:
        return self._apply(
            example,
            messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=add_generation_prompt,
            tokenizer_kwargs={"verbose": False},
        )["input_ids"]

    def _apply(self, example: Example, messages: Sequence[Message], **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(_dicts(messages), **options)
        except jinja2.TemplateError as error:
            raise UserError(
                f"{example.source}: the model's chat template refuses the row ({error}). "
                "Mend or delete it, or choose a raw --template (qa, alpaca, plain)."
            ) from None

    def _around(self, example: Example, index: int, text: str) -> tuple[str, str]:
        """What the rendered text has before and after the content of one message."""
        messages = list(example.messages)
        probe = "probe" + hashlib.sha256(text.encode()).hexdigest()[:16]
        messages[index] = Message(messages[index].role, probe)
        before, found, after = self._render(example, messages).partition(probe)
        fits = text.startswith(before) and text.endswith(after)
        if not found or probe in after or not fits or len(before) + len(after) > len(text):
            raise self._hidden(example, index)
        return before, after

    def _content_span(self, example: Example, index: int, text: str) -> tuple[int, int]:
        """Characters [start, stop) of one message's content (stripped, if the template strips)."""
        before, after = self._around(example, index, text)
        shown = text[len(before) : len(text) - len(after)]
        content = example.messages[index].content
        if shown != content:
            content = content.strip()
            if shown.count(content) != 1 and content:
                raise self._hidden(example, index)
        start = len(before) + shown.find(content)
        return start, start + len(content)

    def _hidden(self, example: Example, index: int) -> UserError:
        return UserError(
            f"{example.source}: the model's chat template does not write message {index + 1} as it "
            "stands, so its tokens cannot be told from the template's. Choose a raw --template "
            "(qa, alpaca, plain)."
        )

    # Tokens

    def _tokens(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the characters [start, stop) that each covers.

        Offset mappings may leave out the white space that a token covers (`trim_offsets`), so that
        " What" seems to begin at the W. What a token decodes to decides, where it stands in the
        text at that place; the mapping decides elsewhere (pieces of one character, SentencePiece).
        """
        tokenised = self.tokenizer(
            text=text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
        ids, spans, cursor = tokenised["input_ids"], [], 0
        for token, (start, stop) in zip(ids, tokenised["offset_mapping"], strict=True):
            piece = self._piece(token)
            if piece and text.startswith(piece, cursor):
                start, stop = cursor, cursor + len(piece)
            spans.append((start, stop))
            cursor = max(cursor, stop)
        return ids, spans

    def _piece(self, token: int) -> str:
        if token not in self._decoded:
            self._decoded[token] = str(
                self.tokenizer.decode(
                    [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
            )
        return self._decoded[token]

    def _encoded(
        self,
        ids: list[int],
        spans: list[tuple[int, int]],
        labels: list[tuple[int, int]],
        content: tuple[int, int],
    ) -> Encoded:
        response = [False] * len(ids)
        for start, stop in labels:
            response[start:stop] = [True] * (stop - start)
        best = (0, 0)  # the longest run: a special token written by the user parts the content
        start = 0
        for i in range(len(ids) + 1):
            inside = (
                i < len(ids)
                and _within(spans[i], content)
                and ids[i] not in self.special
                and not response[i]
            )
            if not inside:
                best = max(best, (start, i), key=lambda run: run[1] - run[0])
                start = i + 1
        return Encoded(tuple(ids), tuple(response), best)


def make_template(
    name: str, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> Template:
    r"""Choose the way rows are written.

    Args:
        name: `chat` (the tokenizer's own), `qa`, `alpaca`, `plain`, a text that holds `{prompt}`
            and `{response}` (`\n` and `\t` in it stand for a line break and a tab), or `auto`:
            `verbatim` for `prompt`/`completion` strings (as TRL joins them), `qa` for multiple
            choice, else `chat` if the tokenizer has one, else `alpaca`.
        tokenizer: a fast tokenizer (it must tell which characters a token covers).
        examples: the rows, which `auto` looks at.

    Raises:
        UserError: no such template, no chat template, a slow tokenizer, or none with an end token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer ({type(tokenizer).__name__}) cannot tell which characters a token "
            "covers: expected a fast one (tokenizer.json). Save it as such, or choose another "
            "--model."
        )
    added = tokenizer.added_tokens_decoder
    special = frozenset(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}
    if name == "auto":
        if examples and all(example.verbatim for example in examples):
            name = "verbatim"
        elif examples and all(example.choices is not None for example in examples):
            name = "qa"
        else:
            name = "chat" if tokenizer.chat_template else "alpaca"
    if name == "chat":
        if not tokenizer.chat_template:
            raise UserError(
                "--template chat, but the model's tokenizer has no chat template. "
                "Choose --template qa, alpaca, plain, or a text with {prompt} and {response}."
            )
        return Template("chat", None, tokenizer, special)
    text = RAW_TEMPLATES.get(name)
    if text is None:
        text, name = name.replace("\\n", "\n").replace("\\t", "\t"), "custom"
        head = text.partition("{prompt}")[0]
        once = text.count("{prompt}") == text.count("{response}") == 1
        if not once or "{response}" in head:
            raise UserError(
                f"--template {text!r} is neither auto, chat, {', '.join(RAW_TEMPLATES)} nor a text "
                "with one {prompt} and, after it, one {response}."
            )
    if not tokenizer.eos_token:
        raise UserError(
            f"--template {name} ends a row with the tokenizer's end-of-sequence token, and it has "
            "none. Set eos_token in tokenizer_config.json, or choose --template chat."
        )
    return Template(name, text, tokenizer, special)


@dataclass(frozen=True)
class Dropped:
    """Rows that were left out while encoding, counted."""

    rows: int
    """Rows that came in."""
    too_long: int
    """Of these, longer than `max_tokens`."""
    unlabelled: int
    """Of these, without a label token."""
    max_tokens: int
    longest: int
    """Tokens of the longest row that came in."""

    @property
    def count(self) -> int:
        """Rows left out."""
        return self.too_long + self.unlabelled

    @property
    def message(self) -> str:
        """One line for the user; empty when nothing was left out."""
        parts = []
        if self.too_long:
            parts.append(
                f"{self.too_long} longer than --max-tokens {self.max_tokens} "
                f"(the longest has {self.longest})"
            )
        if self.unlabelled:
            parts.append(f"{self.unlabelled} whose response leaves no token to learn")
        return f"dropped {self.count} of {self.rows} rows: {', '.join(parts)}" if parts else ""


def encode_all(
    template: Template, examples: Sequence[Example], max_tokens: int, flag: str = "--data"
) -> tuple[list[Encoded], list[Example], Dropped]:
    """Encode rows; one too long, or without a label token, is dropped and counted, never cut.

    Args:
        template: how they are written.
        examples: the rows.
        max_tokens: the longest row that is kept.
        flag: the flag that named the data, for error messages.

    Returns:
        The encoded rows, their examples in the same order, and the count of those dropped.

    Raises:
        UserError: no row is left.
    """
    encoded, kept = [], []
    too_long = unlabelled = longest = 0
    for example in examples:
        row = template.encode(example)
        longest = max(longest, len(row))
        if len(row) > max_tokens:
            too_long += 1
        elif not row.response_tokens:
            unlabelled += 1
        else:
            encoded.append(row)
            kept.append(example)
    dropped = Dropped(len(examples), too_long, unlabelled, max_tokens, longest)
    if not encoded:
        raise UserError(
            f"no row is left ({dropped.message or 'none came in'}). Raise --max-tokens, or give "
            f"{flag} shorter rows."
        )
    return encoded, kept, dropped


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _within(span: tuple[int, int], content: tuple[int, int]) -> bool:
    """Whether a token's characters lie in the content; one of none must lie truly inside."""
    if span[0] == span[1]:
        return content[0] < span[0] < content[1]
    return content[0] <= span[0] and span[1] <= content[1]


def _common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    for length, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return length
    return min(len(a), len(b))
