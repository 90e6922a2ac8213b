"""From an `Example` to a row of text and to token ids, by the model's chat template or a raw text.

What flows out agrees with TRL's SFTTrainer to the token: `Template.encode` gives the ids and the
label mask that the trainer makes of `Template.row` under its completion-only loss (trl 1.x,
`SFTTrainer._prepare_dataset`): an end-of-sequence text behind a raw completion, and labels from
where the tokenised whole parts from the tokenised prompt. On top of that it finds the tokens that
may be learned: those wholly inside the content of the last user turn.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from nacd.data.example import Encoded, Example, Message
from nacd.data.written import (
    FAULTS,
    MEND_ASKS,
    NotWritten,
    Turns,
    Written,
    changed,
    common_prefix,
    quoted,
)
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

    def encode(self, example: Example, turns: Literal["all", "last"] = "all") -> Encoded:
        """The row as token ids, with its labels and its learnable span.

        A label is what the model has to say itself: a turn's content and what the template writes
        to end it; of the last turn, as in TRL, everything behind the generation prompt.

        Args:
            example: the row.
            turns: which assistant turns of a conversation are labels: `all` whose `train` is set,
                or the `last` alone, which is what TRL makes of `row(example)`; with one assistant
                turn the two are the same.

        Raises:
            UserError: the chat template refuses the row, does not write a message as it stands (an
                earlier assistant turn that is no label may lose its beginning, which is counted),
                or would make a label of words that are not the assistant's.
        """
        if len(example.messages) < 2 or example.messages[-2].role != "user":
            raise UserError(
                f"{example.source} has no user message before its last assistant message. Add it, "
                "or join assistant messages that follow each other."
            )
        raw = self.text is not None
        written = self.written(example)
        if raw:
            prompt = self._raw(example)[0]
        else:
            prompt = self._rendered(example, example.messages[:-1], opening=True)
        ids, spans = self._tokens(written.text, special=raw)
        prompt_ids = self.tokenizer(text=prompt, add_special_tokens=raw, verbose=False)["input_ids"]
        start = common_prefix(prompt_ids, ids)
        labels = [(start, len(ids))]
        try:
            closing = "" if raw else self._turns.closing(example.messages)
            stop = len(written.text)
            begin, end = spans[start] if start < len(ids) else (stop, stop)
            lead = self._lead(example, written, prompt, begin, end)
            for index, message in enumerate(example.messages[:-1]):
                if turns == "all" and message.role == "assistant" and message.train:
                    labels.append(self._earlier_turn(example, index, written, closing, spans))
        except NotWritten as fault:
            raise self._unfit(example, fault.how, fault.mend) from None
        content = written.spans[-2] or (0, 0)
        return self._encoded(ids, spans, labels, content, len(written.lost), lead)

    def as_exported(self, example: Example) -> Encoded:
        """The row as token ids with the labels that a data set of ours gives it: the last turn's.

        What is trained on real rows beside distilled ones is labelled in this way too.

        Raises:
            UserError: as `encode`.
        """
        return self.encode(example, turns="last")

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

    def _lead(
        self,
        example: Example,
        written: Written,
        prompt: str,
        begin: int,
        end: int,
    ) -> str:
        """The words of the template's own that the last turn's labels begin with.

        The first label token covers the characters [begin, end).

        Raises:
            NotWritten: they are no part of an answer: the header of the turn, or another message.
        """
        last = len(example.messages) - 1
        text, span = written.text, written.spans[last]
        if span is None:
            raise NotWritten(changed(last, "assistant", "leaves it out"))
        if (
            begin > span[0]
            and text[span[0] : begin].strip()
            and not text.startswith(prompt.rstrip())
        ):
            raise NotWritten(
                f"asks for an answer with {quoted(prompt[span[0] :])}, so that message {last + 1} "
                f"(assistant) would be learned without its {quoted(text[span[0] : begin])}"
            )
        if begin >= span[0] or end > span[0]:  # a token over the border belongs to both sides
            return ""
        border = len(prompt) if text.startswith(prompt) else common_prefix(prompt, text)
        whole, border = not prompt[border:].strip(), min(span[0], border)
        lead = text[max(begin, border) : span[0]]
        # TRL's labels begin with the whole of a word that the border parts, if its tokens change.
        fragment = len(text[begin:border].split()) < 2
        if self.text is not None and not fragment:
            raise UserError(
                f"{example.source}: the prompt's last words have other tokens where the response "
                f"follows, so that {quoted(text[begin:border])} would be learned too. End the "
                "prompt with a line break, or choose another --template."
            )
        if not fragment or (lead.strip() and not whole):
            raise NotWritten(
                f"does not write the row up to message {last + 1} (assistant) as it does where it "
                f"asks for an answer, so that {quoted(text[begin : span[0]])} would be learned too"
            )
        if lead.strip() and not self._turns.asks(example.messages[:-1]):
            raise NotWritten(
                "has no generation prompt, so that the header of an answer "
                f"({quoted(lead)}) would be learned too",
                MEND_ASKS,
            )
        return lead if lead.strip() else ""

    def _earlier_turn(
        self,
        example: Example,
        index: int,
        written: Written,
        closing: str,
        spans: Sequence[tuple[int, int]],
    ) -> tuple[int, int]:
        """The label tokens [start, stop) of an earlier assistant turn.

        They begin where the generation prompt ends, or with the content where the template writes
        another header than it asks with. They stop after what it ends a turn with (`<|im_end|>`).
        """
        span = written.spans[index]
        if span is None:
            return 0, 0
        text = written.text
        if index in written.lost:
            raise self._shortened(example, index, written.lost[index])
        before, after = written.neighbours(index)
        opening = self._turns.opening(example.messages[:index]).lstrip()
        start = span[0]
        if opening and 0 <= (at := text.find(opening, before, span[1])) <= span[0]:
            start = at + len(opening)
        stop = span[1]
        for end in (closing, closing.rstrip()):  # the white space may be the next header's
            if text.startswith(end, span[1], after):
                stop = span[1] + len(end)
                break
        first = last = bisect_right(spans, start, key=lambda token: token[1])
        while last < len(spans) and (spans[last][1] <= stop or spans[last][0] < span[1]):
            last += 1
        return first, last

    def _shortened(self, example: Example, index: int, lost: str) -> NotWritten:
        """An earlier turn whose words would be labels, had the template not left them out."""
        alone = replace(example, messages=example.messages[: index + 1])
        mend = ""
        with contextlib.suppress(UserError):
            if not self.written(alone).lost:
                mend = (
                    "The template does so in earlier turns alone: make this message the last of a "
                    "row of its own, or no label (`train`: false)"
                )
        return NotWritten(changed(index, "assistant", f"leaves out {quoted(lost)}"), mend)

    def _unfit(self, example: Example, how: str, mend: str) -> UserError:
        """The model's chat template does not fit the row."""
        if not mend:
            roles = [m.role for m in example.messages if m.role != "system"]
            raw = "a raw --template (qa, alpaca, plain) or " if len(roles) == 2 else ""
            mend = f"Choose {raw}another --model, or mend the template (chat_template.jinja)"
        return UserError(f"{example.source}: the model's chat template {how}. {mend}.")

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
        shortened: int,
        lead: str,
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
        return Encoded(tuple(ids), tuple(response), best, shortened, lead)


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
        UserError: no such template, no chat template or a broken one, a slow tokenizer, or none
            with an end token.
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
        _check_chat_template(tokenizer)
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


def _check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import PreTrainedTokenizerBase

    if not tokenizer.chat_template:
        raise UserError(
            "--template chat, but the model's tokenizer has no chat template. "
            "Choose --template qa, alpaca, plain, or a text with {prompt} and {response}."
        )
    instead = (
        "choose another --model, or a raw --template (qa, alpaca, plain, or a text with {prompt} "
        "and {response})."
    )
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        raise UserError(
            f"the tokenizer ({type(tokenizer).__name__}) writes chats in a way of its own: "
            f"expected one that renders its chat template. Save it as a plain fast one, {instead}"
        )
    try:
        tokenizer.get_chat_template()
    except ValueError:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise UserError(
            f"the model's tokenizer has several chat templates ({names}), and none is named "
            f"`default`. Name one of them so in its folder, {instead}"
        ) from None
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the model's chat template is not valid Jinja (line {error.lineno}: "
            f"{str(error.message).rstrip('.')}). "
            f"Mend chat_template.jinja (or `chat_template` in tokenizer_config.json), {instead}"
        ) from None
    except FAULTS:  # it may want a system message, or refuse such a short conversation
        pass


@dataclass(frozen=True)
class Dropped:
    """What encoding left out of the rows, or put into them, counted."""

    rows: int
    """Rows that came in."""
    too_long: int
    """Of these, longer than `max_tokens`."""
    unlabelled: int
    """Of these, without a label token."""
    max_tokens: int
    longest: int
    """Tokens of the longest row that came in."""
    shortened: int = 0
    """Rows kept that the chat template writes without the beginning of earlier assistant turns."""
    leads: Mapping[str, int] = field(default_factory=dict)
    """Words of the chat template's own that labels begin with, and how many kept rows have them."""

    @property
    def count(self) -> int:
        """Rows left out."""
        return self.too_long + self.unlabelled

    @property
    def message(self) -> str:
        """One line for the user; empty when every row was encoded whole, and nothing else."""
        parts, lines = [], []
        if self.too_long:
            parts.append(
                f"{self.too_long} longer than --max-tokens {self.max_tokens} "
                f"(the longest has {self.longest})"
            )
        if self.unlabelled:
            parts.append(f"{self.unlabelled} whose response leaves no token to learn")
        if parts:
            lines.append(f"dropped {self.count} of {self.rows} rows: {', '.join(parts)}")
        kept = self.rows - self.count
        if self.shortened:
            lines.append(
                f"in {self.shortened} of {kept} rows the chat template leaves out the beginning of "
                "earlier assistant turns (their reasoning), which are no labels there"
            )
        lines += [
            f"in {count} of {kept} rows the chat template writes {lead!r} before the response, and "
            "it is learned with it, as in TRL"
            for lead, count in self.leads.items()
        ]
        return "; ".join(lines)


def encode_all(
    template: Template,
    examples: Sequence[Example],
    max_tokens: int,
    flag: str = "--data",
    turns: Literal["all", "last"] = "all",
) -> tuple[list[Encoded], list[Example], Dropped]:
    """Encode rows; one too long, or without a label token, is dropped and counted, never cut.

    Args:
        template: how they are written.
        examples: the rows.
        max_tokens: the longest row that is kept.
        flag: the flag that named the data, for error messages.
        turns: as for `Template.encode`.

    Returns:
        The encoded rows, their examples in the same order, and the count of those dropped.

    Raises:
        UserError: no row is left, or one cannot be encoded.
    """
    encoded, kept = [], []
    too_long = unlabelled = longest = 0
    for example in examples:
        row = template.encode(example, turns)
        longest = max(longest, len(row))
        if len(row) > max_tokens:
            too_long += 1
        elif not row.response_tokens:
            unlabelled += 1
        else:
            encoded.append(row)
            kept.append(example)
    dropped = Dropped(
        len(examples),
        too_long,
        unlabelled,
        max_tokens,
        longest,
        sum(row.shortened > 0 for row in encoded),
        Counter(row.lead for row in encoded if row.lead),
    )
    if not encoded:
        raise UserError(
            f"no row is left ({dropped.message or 'none came in'}). Raise --max-tokens, or give "
            f"{flag} shorter rows."
        )
    return encoded, kept, dropped


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


def _within(span: tuple[int, int], content: tuple[int, int]) -> bool:
    """Whether a token's characters lie in the content; one of none must lie truly inside."""
    if span[0] == span[1]:
        return content[0] < span[0] < content[1]
    return content[0] <= span[0] and span[1] <= content[1]
