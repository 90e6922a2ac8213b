"""From an `Example` to token ids, labels, and the tokens that may be learned.

What flows out agrees with TRL's SFTTrainer to the token: `Template.encode` gives the ids and the
label mask that the trainer makes of `Template.row` under its completion-only loss (trl 1.x,
`SFTTrainer._prepare_dataset`): an end-of-sequence text behind a raw completion, and labels from
where the tokenised whole parts from the tokenised prompt. On top of that it finds the tokens that
may be learned: those wholly inside the content of the last user turn.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from nacd.data.example import Encoded, Example
from nacd.data.rendering import Rendering
from nacd.data.written import MEND_ASKS, NotWritten, Written, changed, common_prefix, quoted
from nacd.errors import UserError

BLOCK = 256
"""Rows that are tokenised at once."""


@dataclass(frozen=True, eq=False)
class Template(Rendering):
    """One way to write rows for one tokenizer; made by `nacd.data.making.make_template`."""

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
        return next(self.encoded([example], turns))

    def encoded(
        self, examples: Iterable[Example], turns: Literal["all", "last"] = "all"
    ) -> Iterator[Encoded]:
        """`encode` of one row after another; they are tokenised many at a time.

        Raises:
            UserError: as `encode`, when it is the row's turn.
        """
        source = iter(examples)
        while block := [*islice(source, BLOCK)]:
            texts, fault = [], None
            for example in block:
                try:
                    texts.append(self._texts(example))
                except UserError as error:
                    fault = error
                    break
            if texts:
                found = self._tokens([text for written, prompt in texts
                                      for text in (written.text, prompt)])  # fmt: skip
                for example, (written, prompt) in zip(block, texts, strict=False):
                    (ids, offsets), (prompt_ids, _) = next(found), next(found)
                    spans = self._spans(written.text, ids, offsets)
                    yield self._labelled(example, turns, written, prompt, ids, spans, prompt_ids)
            if fault is not None:
                raise fault

    def _texts(self, example: Example) -> tuple[Written, str]:
        """The row's text, and that of the row up to its response."""
        if len(example.messages) < 2 or example.messages[-2].role != "user":
            raise UserError(
                f"{example.source} has no user message before its last assistant message. Add it, "
                "or join assistant messages that follow each other."
            )
        written = self.written(example)
        if self.text is not None:
            return written, self._raw(example)[0]
        return written, self._rendered(example, example.messages[:-1], opening=True)

    def _labelled(
        self,
        example: Example,
        turns: Literal["all", "last"],
        written: Written,
        prompt: str,
        ids: list[int],
        spans: list[tuple[int, int]],
        prompt_ids: list[int],
    ) -> Encoded:
        start = common_prefix(prompt_ids, ids)
        labels = [(start, len(ids))]
        try:
            closing = "" if self.text is not None else self._turns.closing(example.messages)
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

    # Tokens

    def _tokens(self, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Every text's token ids and their offset mapping."""
        found = self.tokenizer(
            text=texts,
            add_special_tokens=self.text is not None,
            return_offsets_mapping=True,
            verbose=False,
        )
        return zip(found["input_ids"], found["offset_mapping"], strict=True)

    def _spans(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """The characters [start, stop) that each token covers.

        Offset mappings may leave out the white space that a token covers (`trim_offsets`), so that
        " What" seems to begin at the W. What a token decodes to decides, where it stands in the
        text at that place; the mapping decides elsewhere (pieces of one character, SentencePiece).
        """
        spans, cursor, pieces = [], 0, self._decoded
        for token, (start, stop) in zip(ids, offsets, strict=True):
            piece = pieces[token] if token in pieces else self._piece(token)
            if piece and text.startswith(piece, cursor):
                start, stop = cursor, cursor + len(piece)
            spans.append((start, stop))
            if stop > cursor:
                cursor = stop
        return spans

    def _piece(self, token: int) -> str:
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
        start, (low, high) = 0, content
        for i, (begin, end) in enumerate(spans):
            # one of no characters must lie truly inside
            inside = low <= begin and end <= high if begin < end else low < begin < high
            if not inside or response[i] or ids[i] in self.special:
                if i - start > best[1] - best[0]:
                    best = start, i
                start = i + 1
        if len(ids) - start > best[1] - best[0]:
            best = start, len(ids)
        return Encoded(tuple(ids), tuple(response), best, shortened, lead)
