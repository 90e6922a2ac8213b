"""Where a chat template writes each message of a conversation.

A chat template is a program: it may trim a message, cut it, move it, or write words of its own
around it. What it writes around messages is read off a conversation of the same roles whose
contents are probes, rendered once for every sequence of roles (`_Layout`). A row's text must then
be that, with the row's own contents in the places of the probes. A template that looks into a
message (Qwen3's looks for `</think>`) may write a row otherwise; such a row is rendered once more,
with a mark inside every message, and each message is compared with what stands around its mark.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from nacd.data.example import Message

FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What rendering may raise: a template is foreign code, and these are what its mistakes raise."""

MEND_SYSTEM = "Put its words at the head of the user message that follows it"
MEND_ASKS = (
    "Write that header in the template (chat_template.jinja) under "
    "`{% if add_generation_prompt %}`, or choose another --model"
)

_MISSING = "leaves it out or cuts it"

Render = Callable[[Sequence[Message], bool], str]
"""The text of messages, with the header of the answer to come (the generation prompt) or not."""


class NotWritten(Exception):
    """A row that the template does not write as it stands."""

    def __init__(self, how: str, mend: str = ""):
        super().__init__(how)
        self.how = how
        """What the template does, as the rest of a sentence about it."""
        self.mend = mend
        """What the user can do, where that follows from how."""


@dataclass(frozen=True)
class Written:
    """A row's text, and where its messages stand in it."""

    text: str
    """The whole row as it is tokenised."""
    spans: tuple[tuple[int, int] | None, ...]
    """Characters [start, stop) of each message's content, without the white space at its ends that
    is not written; None for a blank message that the template leaves out."""
    lost: dict[int, str]
    """By index, the beginning of earlier assistant messages that the template leaves out (their
    reasoning): the span covers the rest."""

    def neighbours(self, index: int) -> tuple[int, int]:
        """Where the content before that of message `index` stops, and the one after it starts."""
        start, stop = self.spans[index] or (0, 0)
        others = [span for i, span in enumerate(self.spans) if span is not None and i != index]
        return (
            max((b for _, b in others if b <= start), default=0),
            min((a for a, _ in others if a >= stop), default=len(self.text)),
        )


@dataclass(frozen=True)
class _Layout:
    """What the template writes around the messages of one sequence of roles."""

    order: tuple[int, ...]
    """Indices of the messages, in the order in which they are written."""
    pieces: tuple[str, ...]
    """The text before, between and after them: one more than `order` has."""
    fault: tuple[str, str] | None
    """What the template does to a message that it does not write once, and the mend."""


class Turns:
    """Finds messages in what a chat template renders, and what stands around them."""

    def __init__(self, render: Render, special: Sequence[str]):
        self._render = render
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._layouts: dict[Any, _Layout | None] = {}
        self._closings: dict[tuple[str, ...], str] = {}

    def locate(self, messages: Sequence[Message], text: str) -> Written:
        """Find every message in a row's text.

        Args:
            messages: the row.
            text: what the template renders of it.

        Raises:
            NotWritten: a message is missing, cut, changed, or written twice; the beginning of an
                earlier assistant message alone may be missing.
        """
        layouts = [self._layout(_shape(messages, blank=False))]
        if any(not message.content.strip() for message in messages):
            layouts.append(self._layout(_shape(messages, blank=True)))
        for layout in layouts:
            if layout is not None and (spans := _match(messages, text, layout)):
                return Written(text, spans, {})
        fault = NotWritten("refuses the row with other words in it")
        for layout in layouts:
            try:
                if layout is not None:
                    return self._by_marks(messages, text, layout)
            except NotWritten as error:
                fault = error
        raise fault

    def opening(self, messages: Sequence[Message]) -> str:
        """What the template writes behind the last message where it asks for an answer.

        Empty where there is no message, or the template refuses such a conversation.
        """
        layout = self._layout(_shape(messages, blank=False), True) if messages else None
        return layout.pieces[-1] if layout else ""

    def asks(self, messages: Sequence[Message]) -> bool:
        """Whether the template has a generation prompt behind these messages."""
        layout = self._layout(_shape(messages, blank=False))
        return layout is not None and self.opening(messages) not in ("", layout.pieces[-1])

    def closing(self, messages: Sequence[Message]) -> str:
        """What the template writes to end a turn of the assistant's, wherever it stands.

        Raises:
            NotWritten: behind the last turn stands more: the header of another one, or words.
        """
        roles = tuple(message.role for message in messages)
        if roles not in self._closings:
            self._closings[roles] = self._closing(roles)
        return self._closings[roles]

    def _closing(self, roles: tuple[str, ...]) -> str:
        last = len(roles) - 1
        layout = self._layout(tuple((role, None) for role in roles))
        if layout is None or last not in layout.order:
            return ""
        if layout.order[-1] != last:
            raise NotWritten(f"writes message {layout.order[-1] + 1} behind the answer")
        closing, header = layout.pieces[-1], layout.pieces[-2]
        longer = self._layout(tuple((role, None) for role in (*roles, "user")))
        end, more = closing, closing
        if longer is not None and longer.fault is None:
            following = longer.pieces[longer.order.index(last) + 1]
            end = closing[: common_prefix(closing, following)]
            more = closing[len(end) :]
        if more.strip() and header.rstrip().endswith(more.strip()):
            raise NotWritten(
                f"writes the header of another answer ({quoted(closing)}) behind every row, so "
                "that it would be learned too",
                MEND_ASKS,
            )
        unspecial = self._special.sub(lambda token: " " * len(token[0]), closing)
        if unspecial[len(end) :].strip():
            raise NotWritten(
                f"writes {quoted(closing.strip())} behind the last answer alone, which would be "
                "learned too"
            )
        for token in self._special.finditer(closing):
            if token.start() < len(end) < token.end():
                end = closing[: token.start()]
        return end

    def _layout(
        self, shape: tuple[tuple[str, str | None], ...], opening: bool = False
    ) -> _Layout | None:
        if (shape, opening) not in self._layouts:
            self._layouts[shape, opening] = self._probe(shape, opening)
        return self._layouts[shape, opening]

    def _probe(self, shape: tuple[tuple[str, str | None], ...], opening: bool) -> _Layout | None:
        probes = {i: f"probe{i}x7c1e09" for i, (_, blank) in enumerate(shape) if blank is None}
        messages = [
            Message(role, probes.get(i, blank or "")) for i, (role, blank) in enumerate(shape)
        ]
        try:
            text = self._render(messages, opening)
        except FAULTS:
            return None
        faults = {}
        for i, probe in probes.items():
            if (count := text.count(probe)) > 1:
                faults[i] = "writes it more than once"
            elif not count:
                faults[i] = "changes its letters" if probe in text.lower() else _MISSING
        # Advice on a system message is no good where the others are not written either.
        i = min(faults, key=lambda i: (shape[i][0] == "system", i), default=0)
        mend = MEND_SYSTEM if (shape[i][0], faults.get(i)) == ("system", _MISSING) else ""
        fault = (changed(i, shape[i][0], faults[i]), mend) if faults else None
        order = sorted(
            (i for i, p in probes.items() if p in text), key=lambda i: text.find(probes[i])
        )
        pieces = re.split("|".join(probes[i] for i in order) or "(?!)", text)
        return _Layout(tuple(order), tuple(pieces), fault)

    def _by_marks(self, messages: Sequence[Message], text: str, layout: _Layout) -> Written:
        """Find every message of a layout by a mark inside its last word, in a second rendering."""
        if layout.fault is not None:
            raise NotWritten(*layout.fault)
        mark = "m" + hashlib.sha256(text.encode()).hexdigest()[:16]
        cores = [message.content.strip() for message in messages]
        cuts = [_inside(core) for core in cores]
        marked = list(messages)
        for i in layout.order:
            content, core, cut = messages[i].content, cores[i], cuts[i]
            at = content.find(core) + cut if core else len(content)
            words = f"{content[:at]}{mark}n{i}x{content[at:]}"
            marked[i] = Message(messages[i].role, words)
        try:
            rendered = self._render(marked, False)
        except FAULTS:
            rendered = ""
        places: dict[int, list[int]] = {i: [] for i in layout.order}
        taken = 0
        for found in re.finditer(rf"{mark}n(\d+)x", rendered):
            places[int(found[1])].append(found.start() - taken)
            taken += len(found[0])
        lost: dict[int, str] = {}
        spans: dict[int, tuple[int, int]] = {}
        for i in sorted(places, key=lambda i: cores[i] in text):  # what is missing comes first
            core, k, where = cores[i], cuts[i], places[i]
            if len(where) > 1:
                raise NotWritten(changed(i, messages[i].role, "writes it more than once"))
            start = where[0] - k if where else -1
            if start < 0 or not text.startswith(core, start):
                piece = layout.pieces[layout.order.index(i)]
                shown = _shown(core, k, text, where, piece.strip())
                earlier = messages[i].role == "assistant" and i < len(messages) - 1
                if not shown or not earlier:
                    how, mend = _difference(core, text, shown)
                    raise NotWritten(changed(i, messages[i].role, how), mend)
                lost[i] = core[: len(core) - len(shown)]
                start = where[0] - k + len(lost[i])
            spans[i] = (start, start + len(core) - len(lost.get(i, "")))
        if re.sub(rf"{mark}n\d+x", "", rendered) != text:
            raise NotWritten("writes its own part of the row otherwise when the row's words change")
        return Written(text, self._widened(messages, text, layout, spans, lost), lost)

    def _widened(
        self,
        messages: Sequence[Message],
        text: str,
        layout: _Layout,
        spans: dict[int, tuple[int, int]],
        lost: dict[int, str],
    ) -> tuple[tuple[int, int] | None, ...]:
        """The spans with the white space at the ends of contents, as far as it is written.

        Raises:
            NotWritten: what stands between two messages is not what the layout says. An assistant
                message may itself begin with the end of that (an empty block for the reasoning).
        """
        order = sorted(spans, key=lambda i: spans[i])
        if tuple(order) != layout.order:
            raise NotWritten("writes its messages in another order when their words change")
        before = 0
        for place, (i, piece) in enumerate(zip([*order, None], layout.pieces, strict=True)):
            start, stop = (len(text), len(text)) if i is None else spans[i]
            gap = text[before:start]
            same = gap.strip() == piece.strip()
            begins = i is not None and messages[i].role == "assistant" and i not in lost
            begins = begins and piece.strip().startswith(gap.strip())
            if start < before or not (same or begins):
                where = "behind the answer" if i is None else f"before message {i + 1}"
                raise NotWritten(
                    f"writes {quoted(gap.strip())} {where}, and {quoted(piece.strip())} there when "
                    "the row's words change"
                )
            if gap.strip():
                tail, lead = gap.find(gap.strip()), len(gap) - len(gap.rstrip())
                tail -= len(piece) - len(piece.lstrip())
                lead = lead - (len(piece) - len(piece.rstrip())) if same else 0
                if place and tail > 0:
                    previous = order[place - 1]
                    spans[previous] = (spans[previous][0], before + tail)
                if i is not None and lead > 0 and i not in lost:
                    spans[i] = (start - lead, stop)
            before = stop
        return tuple(spans.get(i) for i in range(len(messages)))


def _shape(messages: Sequence[Message], blank: bool) -> tuple[tuple[str, str | None], ...]:
    """The roles; with `blank` the contents too that are nothing but white space."""
    return tuple((m.role, m.content if blank and not m.content.strip() else None) for m in messages)


def _match(
    messages: Sequence[Message], text: str, layout: _Layout
) -> tuple[tuple[int, int] | None, ...] | None:
    """Every content's place, if the text is the layout with the contents in it."""
    if layout.fault is not None or not text.startswith(layout.pieces[0]):
        return None
    spans: list[tuple[int, int] | None] = [None] * len(messages)
    cursor = len(layout.pieces[0])
    for i, piece in zip(layout.order, layout.pieces[1:], strict=True):
        content = messages[i].content
        core = content.strip()
        at = content.find(core)
        start = text.find(core, cursor, cursor + at + len(core)) if core else cursor
        if start < 0 or not content[:at].endswith(text[cursor:start]):
            return None
        stop = start + len(core)
        rest = content[at + len(core) :]
        last = i == layout.order[-1]
        for kept in range(len(rest), -1, -1):
            end = stop + kept
            ends = not last or end + len(piece) == len(text)
            if ends and text.startswith(piece, end) and text.startswith(rest[:kept], stop):
                break
        else:
            return None
        spans[i] = (cursor, end)
        cursor = end + len(piece)
    return tuple(spans)


def _inside(core: str) -> int:
    """A place inside the last word that is no part of a `<tag>`; the end, where there is none."""
    words = [found for found in re.finditer(r"<[^<>]*>|\w+", core) if found[0][0] != "<"]
    return words[-1].start() + 1 if words else len(core)


def _shown(core: str, cut: int, text: str, where: Sequence[int], header: str) -> str:
    """The end of a message, if it stands around its mark and behind the header; else nothing."""
    if not where or not text.startswith(core[cut:], where[0]):
        return ""
    before, own = text[: where[0]][::-1], core[:cut][::-1]
    for start in range(cut - common_prefix(before, own), cut):
        ahead = where[0] - (cut - start)
        while ahead and text[ahead - 1].isspace():
            ahead -= 1
        if not core[start].isspace() and text.endswith(header, 0, ahead):
            return core[start:]
    return ""


def _difference(core: str, text: str, shown: str) -> tuple[str, str]:
    """What the template makes of a message, and a mend where one follows from that."""
    if core in text:
        return "writes it otherwise when its words change", ""
    squeezed, all_squeezed = "".join(core.split()), "".join(text.split())
    if (at := all_squeezed.find(squeezed)) >= 0:
        letters = [i for i, letter in enumerate(text) if not letter.isspace()]
        theirs = text[letters[at] : letters[at + len(squeezed) - 1] + 1]
        first = common_prefix(core, theirs)
        own, other = (quoted(t, max(0, first - 12)) for t in (core, theirs))
        return (
            f"changes white space inside it, {own} to {other}",
            "Write that white space in the row as the template does",
        )
    if shown:
        return f"leaves out {quoted(core[: len(core) - len(shown)])}", ""
    written = bisect_left(range(len(core)), True, key=lambda n: core[: n + 1] not in text)
    return f"cuts or changes {quoted(core, written if written > 7 else 0)}", ""


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items, from the first on, are the same in both."""
    for length, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return length
    return min(len(a), len(b))


def changed(index: int, role: str, how: str) -> str:
    """The rest of a sentence about a template that changes one message."""
    return f"does not write message {index + 1} ({role}) as it stands: it {how}"


def quoted(text: str, start: int = 0) -> str:
    """The text from `start` on, as far as a message to the user has room for it."""
    part = text[start : start + 48]
    return repr(part + "..." * (start + 48 < len(text)))
