"""Multiple choice: rows to questions, and what their answers mean, decided for all rows at once.

An answer of 2 is the third choice where answers count from 0, the second where they count from 1;
"D" is the fourth choice, or the one whose text is "D". One row cannot tell. The reading that fits
every row is taken; where several do and differ, or none does, the rows are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nacd.data.example import Example, Message
from nacd.data.keys import absent
from nacd.data.row import Row, kind, shown, text
from nacd.data.stored import Examples
from nacd.data.turns import with_system
from nacd.errors import UserError

ChoiceForm = Literal["cloze", "letter"]
Answers = Literal["auto", "from-0", "from-1", "letters", "texts"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_NUMBER = re.compile(r"(\d+)(\.0+)?", re.ASCII)


@dataclass(frozen=True)
class Question:
    """One row, its answer not yet read."""

    source: str
    text: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    """The row's own names of its choices; empty where it gives none."""
    answer: Any
    """As the row has it."""
    column: str
    """The answer's column, for messages."""
    system: tuple[Message, ...]
    """The system turn, if the row has one."""
    group: str = ""
    """The row's group, if any."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the row but its system turn."""
        return (self.text, *self.choices)

    def wrong(self, why: str) -> UserError:
        """An error about the answer."""
        return UserError(f"{self.source}: `{self.column}` is {shown(self.answer)}, {why}")


def question(row: Row) -> Question:
    """A row's question, choices and answer.

    Raises:
        UserError: one of them is missing or no text.
    """
    choices, name = row.structure("choices"), f"`{row.name('choices')}`"
    labels: Sequence[Any] = ()
    if isinstance(choices, Mapping) and "text" in choices:
        labels, choices = choices.get("label") or (), choices["text"]
    elif isinstance(choices, Mapping):
        said = {label: choice for label, choice in choices.items() if choice is not None}
        labels, choices = [*said], [*said.values()]
    if isinstance(choices, list | tuple) and "," in name:
        choices = _without_end(choices)
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise row.wrong(
            f"{name} is {shown(choices)}, expected 2 to {len(LETTERS)} choices: a list of texts, "
            "an object with `text` and `label` lists, or a column for each. Write them so."
        )
    if labels and len(labels) != len(choices):
        raise row.wrong(
            f"{name} has {len(choices)} texts and {len(labels)} labels. Give each text its label."
        )
    texts = tuple(text(row.source, choice, f"a choice of {name}") for choice in choices)
    answer, column = row.get("answer"), row.name("answer")
    if absent(answer) and answer not in texts:
        what = "blank" if isinstance(answer, str) else kind(answer)
        raise row.no_response(f"`{column}` is {what}")
    return Question(
        row.source,
        row.text("question"),
        texts,
        tuple(map(str, labels)),
        answer,
        column,
        tuple(with_system(row, [])),
    )


def answered(
    questions: Sequence[Question], form: ChoiceForm, answers: Answers = "auto"
) -> Examples:
    """Read the answers of all questions and write them as rows.

    Args:
        questions: those of one file, or of the files that are read as one.
        form: see `choice_example`.
        answers: how an answer names its choice: `from-0` or `from-1`, its number; `letters`, its
            letter, or its label where the row has labels; `texts`, its text; `auto`: whichever fits
            all rows.

    Raises:
        UserError: no reading fits all rows, or several do and do not agree.
    """
    places: dict[int, int] = {}
    for labelled in (True, False):
        if group := [q for q in questions if bool(q.labels) is labelled]:
            found = _places(group, answers)
            places |= {id(q): place for q, place in zip(group, found, strict=True)}
    rows = Examples()
    for q in questions:
        made = choice_example(q.source, q.text, q.choices, places[id(q)], form)
        rows.append(replace(made, messages=(*q.system, *made.messages), group=q.group))
    return rows


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
        raise UserError(
            f"{source} has no response: the right choice is blank. Fill it in, or leave the row "
            "out."
        )
    messages = (Message("user", question), Message("assistant", choices[answer]))
    return Example(messages, source, choices, answer)


def _without_end(cells: Sequence[Any]) -> list[Any]:
    """Columns of their own may be more than a row has choices: empty ones at the end are none."""
    kept = list(cells)
    while kept and (not kept[-1].strip() if isinstance(kept[-1], str) else absent(kept[-1])):
        kept.pop()
    return kept


def _number(value: Any) -> int | None:
    match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value).strip())
    return int(match[1]) if match and len(match[1]) <= 9 else None


def _from(first: int) -> Callable[[Question], int | None]:
    def place(q: Question) -> int | None:
        number = _number(q.answer)
        if number is None or not first <= number < first + len(q.choices):
            return None
        return number - first

    return place


def _by_letter(q: Question) -> int | None:
    if q.labels:
        key = str(q.answer).strip()
        return q.labels.index(key) if q.labels.count(key) == 1 else None
    match = _LETTER.fullmatch(q.answer.strip()) if isinstance(q.answer, str) else None
    place = LETTERS.index(match[1].upper()) if match else len(q.choices)
    return place if place < len(q.choices) else None


def _by_text(q: Question) -> int | None:
    number = None if isinstance(q.answer, str) else _number(q.answer)
    if not isinstance(q.answer, str) and number is None:
        return None
    key = q.answer.strip() if isinstance(q.answer, str) else str(number)
    texts = [choice.strip() for choice in q.choices]
    return texts.index(key) if texts.count(key) == 1 else None


_MANNER = {
    "from-0": "counted from 0",
    "from-1": "counted from 1",
    "letters": "as a letter",
    "texts": "as a text",
}
_READINGS: dict[str, Callable[[Question], int | None]] = {
    "from-0": _from(0),
    "from-1": _from(1),
    "letters": _by_letter,
    "texts": _by_text,
}


def _places(questions: Sequence[Question], answers: Answers) -> list[int]:
    """The index of each question's right choice; all have labels, or none has."""
    names = _READINGS if answers == "auto" else [answers]
    read = {name: [_READINGS[name](q) for q in questions] for name in names}
    whole = {name: [p for p in places if p is not None] for name, places in read.items()}
    fits = {name: places for name, places in whole.items() if len(places) == len(questions)}
    if questions[0].labels and "letters" in fits:  # the row's own word
        return fits["letters"]
    if not fits:
        raise _none_fits(questions, read, answers)
    first, *others = fits.values()
    for other in others:
        if other != first:
            raise _undecided(questions, fits)
    return first


def _none_fits(
    questions: Sequence[Question], read: Mapping[str, Sequence[int | None]], answers: Answers
) -> UserError:
    counts = {name: sum(place is not None for place in read[name]) for name in read}
    best, *others = sorted(counts, key=lambda name: -counts[name])

    def unread(name: str) -> Question:
        return questions[next(i for i, place in enumerate(read[name]) if place is None)]

    q = unread(best)
    if answers != "auto":
        return q.wrong(
            f"expected {_expected(best, q)} (--answers {answers}). Mend the row, or the flag."
        )
    if q.labels:
        return q.wrong(f"expected {_expected('letters', q)}. Write which choice is right.")
    if counts[best] == 0 or len(questions) == 1:
        return q.wrong(
            f"expected a number from 0 or from 1, {_expected('letters', q)}, or the text of one "
            "choice and of no other. Write which choice is right."
        )
    if counts[others[0]] == counts[best]:
        other = unread(others[0])
        return q.wrong(
            f"which is none {_MANNER[best]}, and {other.source} has {shown(other.answer)}, which "
            f"is none {_MANNER[others[0]]}: all rows must answer in one way. Mend them."
        )
    return q.wrong(
        f"expected {_expected(best, q)}: {counts[best]} of {len(questions)} rows can be read as "
        f"answers {_MANNER[best]}, and all must answer in one way. Mend the rows that do not."
    )


def _undecided(questions: Sequence[Question], fits: Mapping[str, Sequence[int]]) -> UserError:
    at = next(i for i in range(len(questions)) if len({p[i] for p in fits.values()}) > 1)
    q = questions[at]
    means = " and ".join(f"{shown(q.choices[p[at]])} {_MANNER[name]}" for name, p in fits.items())
    why = "all rows can be read in either way"
    if set(fits) == {"from-0", "from-1"}:
        why = "no row answers 0, nor the number of its choices, so that it cannot be told"
    return q.wrong(f"which is {means}: {why}. Say which is meant: --answers {' or '.join(fits)}")


def _expected(name: str, q: Question) -> str:
    if name == "letters" and q.labels:
        return f"one of its labels {', '.join(q.labels)}"
    last = len(q.choices)
    return {
        "from-0": f"0 to {last - 1}",
        "from-1": f"1 to {last}",
        "letters": f"A to {LETTERS[last - 1]}",
        "texts": "the text of one choice and of no other",
    }[name]
