"""What the answers of multiple-choice rows mean, decided for all rows of a file at once."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nacd.data import Answers, Example, read_examples
from nacd.errors import UserError

COLOURS = ("red", "blue", "green", "pink")


def questions(places: Sequence[int], answers: Sequence[Any], choices: Any = COLOURS) -> list[Any]:
    """Rows whose right choice says so; the others are colours."""
    rows = []
    for number, (place, answer) in enumerate(zip(places, answers, strict=True)):
        texts = [*choices]
        texts[place] = f"right {texts[place]}"
        rows.append({"question": f"Number {number}?", "choices": texts, "answer": answer})
    return rows


def read(
    folder: Path, rows: Sequence[Any], answers: Answers = "auto", **options: Any
) -> Sequence[Example]:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, answers=answers, **options)


def wrong(examples: Sequence[Example]) -> list[str]:
    return [e.source for e in examples if not e.response.startswith("right")]


PLACES = (0, 1, 2, 3, 1, 2)
WAYS = {
    "from 0": [*PLACES],
    "from 0 as text": [str(p) for p in PLACES],
    "from 0 as float": [float(p) for p in PLACES],
    "from 1": [p + 1 for p in PLACES],
    "from 1 as text": [str(p + 1) for p in PLACES],
    "letters": ["ABCD"[p] for p in PLACES],
    "small letters": ["abcd"[p] for p in PLACES],
    "letters in brackets": [f"({'ABCD'[p]})" for p in PLACES],
    "texts": [f"right {COLOURS[p]}" for p in PLACES],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_reading_that_fits_all_rows_is_taken(tmp_path: Path, way: str):
    examples = read(tmp_path, questions(PLACES, WAYS[way]))
    assert [e.answer for e in examples] == [*PLACES]
    assert not wrong(examples)


@pytest.mark.parametrize(("first", "name"), [(0, "from-0"), (1, "from-1")])
def test_numbers_that_cannot_be_told_are_refused_until_the_user_says(
    tmp_path: Path, first: int, name: Answers
):
    places = [p for p in (1, 2) * 10] if first == 0 else [0, 1, 2] * 7
    rows = questions(places, [p + first for p in places])
    with pytest.raises(UserError) as caught:
        read(tmp_path, rows)
    message = str(caught.value)
    assert "mine.jsonl:1: `answer` is 1, which is" in message
    assert "counted from 0" in message
    assert "no row answers 0" in message
    assert message.endswith("--answers from-0 or from-1")
    assert not wrong(read(tmp_path, rows, name))


def test_one_row_that_does_not_fit_is_named_with_what_the_others_do(tmp_path: Path):
    from_1 = questions((0, 3, 3, 1), (1, 4, 4, 0))
    with pytest.raises(
        UserError,
        match=r"mine\.jsonl:4: `answer` is 0, expected 1 to 4: 3 of 4 rows .* counted from 1",
    ):
        read(tmp_path, from_1)
    from_0 = questions((0, 3, 0, 1), (0, 3, 0, 4))
    with pytest.raises(UserError, match=r"jsonl:4: `answer` is 4, expected 0 to 3: .* from 0"):
        read(tmp_path, from_0)
    either = questions((1, 3, 0), (1, 4, 0))
    with pytest.raises(UserError, match=r"jsonl:2: .* is 4, .* from 0, and .*:3 has 0, .* from 1"):
        read(tmp_path, either)
    letters = questions((0, 3, 1), ("A", "D", "blue"))
    with pytest.raises(UserError, match=r"mine\.jsonl:3: .*expected A to D: 2 of 3 rows"):
        read(tmp_path, letters)


@pytest.mark.parametrize("odd", [-1, True, 9, "E", "no colour", 1.5, ["A"], {"a": 1}, "²"])
def test_an_answer_that_is_no_choice_is_named(tmp_path: Path, odd: Any):
    with pytest.raises(UserError, match=r"mine\.jsonl:1: `answer` is .*Write which choice is"):
        read(tmp_path, questions([0], [odd]))
    with pytest.raises(UserError, match=r"mine\.jsonl:2: `answer` is .*3 of 4 rows can be read"):
        read(tmp_path, questions([0] * 4, ["A", odd, "A", "A"]))


@pytest.mark.parametrize("blank", [None, "", " ", float("nan"), []])
def test_a_missing_answer_is_named(tmp_path: Path, blank: Any):
    with pytest.raises(UserError, match=r"mine\.jsonl:2 has no response: `answer` is"):
        read(tmp_path, questions([0, 0], ["A", blank]))


def test_texts_that_are_letters_or_numbers_are_texts_where_other_rows_say_so(tmp_path: Path):
    rows = questions((0, 2), ("right red", "right green"))
    rows.append({"question": "Which?", "choices": ["C", "A", "D", "B"], "answer": "D"})
    rows.append({"question": "1 + 1?", "choices": ["3", "0", "2", "1"], "answer": "2"})
    assert [e.response for e in read(tmp_path, rows)][2:] == ["D", "2"]
    rows[:2] = questions((0, 2), ("A", "C"))
    assert [e.response for e in read(tmp_path, rows[:3])][2] == "B"


def test_letters_that_are_texts_in_every_row_are_refused_until_the_user_says(tmp_path: Path):
    rows = [{"question": "Which?", "choices": ["C", "A", "D", "B"], "answer": "D"}] * 2
    with pytest.raises(UserError, match=r"'B' as a letter and 'D' as a text.*letters or texts$"):
        read(tmp_path, rows)
    assert read(tmp_path, rows, "letters")[0].response == "B"
    assert read(tmp_path, rows, "texts")[0].response == "D"
    same = [{"question": "Which?", "choices": ["A", "B"], "answer": "B"}] * 2
    assert read(tmp_path, same)[0].response == "B"  # either way


def test_a_text_that_two_choices_share_does_not_tell(tmp_path: Path):
    rows = questions((0, 1), ("right red", "green"), ("red", "blue", "green", "green"))
    with pytest.raises(UserError, match=r"mine\.jsonl:2: .*the text of one choice and of no other"):
        read(tmp_path, rows)


def test_what_the_user_says_is_held_to(tmp_path: Path):
    rows = questions((0, 1), (0, 1))
    with pytest.raises(UserError, match=r"is 0, expected 1 to 4 \(--answers from-1\)"):
        read(tmp_path, rows, "from-1")


LABELLED = {"question": "Sky?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}}


def test_labels_are_the_rows_own_word(tmp_path: Path):
    for key in ("2", 2):
        (example,) = read(tmp_path, [LABELLED | {"answerKey": key}])
        assert (example.response, example.answer) == ("blue", 1)
    swapped = {"text": ["B", "A"], "label": ["A", "B"]}
    (example,) = read(tmp_path, [{"question": "Which?", "choices": swapped, "answerKey": "B"}])
    assert example.response == "A"
    with pytest.raises(UserError, match=r"`answerKey` is 'C', expected one of its labels 1, 2"):
        read(tmp_path, [LABELLED | {"answerKey": "C"}])
    short = {"text": ["red", "blue"], "label": ["1"]}
    with pytest.raises(UserError, match="has 2 texts and 1 labels"):
        read(tmp_path, [LABELLED | {"choices": short, "answerKey": "1"}])


def test_answers_beside_labels_may_be_places_or_texts(tmp_path: Path):
    choices = {"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}
    for answers in ((0, 1, 2), ("red", "blue", "green")):
        rows = [{"question": "?", "choices": choices, "answer": answer} for answer in answers]
        assert [e.answer for e in read(tmp_path, rows)] == [0, 1, 2]
    rows = [{"question": "?", "choices": choices, "answer": answer} for answer in (1, 2)]
    assert [e.answer for e in read(tmp_path, rows)] == [0, 1]  # a label, before all


def test_a_number_may_be_the_text_of_a_choice(tmp_path: Path):
    rows = [{"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 4}] * 2
    with pytest.raises(UserError, match=r"'6' counted from 1 and '4' as a text"):
        read(tmp_path, rows)
    assert read(tmp_path, rows, "texts")[0].response == "4"
    rows.append({"question": "5 + 5?", "choices": ["9", "10", "11", "12"], "answer": 10})
    assert [e.response for e in read(tmp_path, rows)] == ["4", "4", "10"]


def test_choices_may_be_an_object_of_labels(tmp_path: Path):
    row = {"question": "Sky?", "options": {"A": "red", "B": "blue", "C": None}}
    mapping = {"choices": "options"}
    for answer in ("B", "blue"):
        (example,) = read(tmp_path, [row | {"answer": answer}], columns=mapping)
        assert (example.response, example.choices) == ("blue", ("red", "blue"))


@pytest.mark.parametrize(
    "names",
    [
        ("A", "B", "C", "D"),
        ("a", "b", "c", "d"),
        ("option_a", "option_b", "option_c", "option_d"),
        ("Option A", "Option B", "Option C", "Option D"),
        ("choice1", "choice2", "choice3", "choice4"),
        ("ending0", "ending1", "ending2", "ending3"),
        ("opa", "opb", "opc", "opd"),
    ],
)
def test_a_column_for_each_choice(tmp_path: Path, names: Sequence[str]):
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["answer", "question", *reversed(names)])
        for place in PLACES:
            texts = [f"right {c}" if i == place else c for i, c in enumerate(COLOURS)]
            writer.writerow([place + 1, "Which, pray?", *reversed(texts)])
        writer.writerow([2, "Two only?", "", "", "right blue", "red"])
    examples = read_examples(path)
    assert [e.answer for e in examples] == [*PLACES, 1]
    assert not wrong(examples)
    assert examples[-1].choices == ("red", "right blue")


def test_a_column_for_each_choice_in_some_rows_one_more(tmp_path: Path):
    rows: list[Any] = [
        {"question": "Sky?", "A": "red", "B": "right", "answer": "B"},
        {"question": "Sea?", "A": "red", "B": "blue", "C": "right", "answer": "C"},
    ]
    assert not wrong(read(tmp_path, rows))
    rows[1] = {"question": "Sea?", "A": "red", "B": "blue", "D": "right", "answer": "D"}
    with pytest.raises(UserError, match=r"mine\.jsonl:2 is of another shape"):
        read(tmp_path, rows)
    rows[1] = {"question": "Sea?", "A": "red", "B": " ", "C": "right", "answer": "C"}
    assert not wrong(read(tmp_path, rows))
    code = {"question": "An empty list?", "A": "()", "B": "[]", "C": None, "answer": "B"}
    assert read(tmp_path, [code])[0].choices == ("()", "[]")
    named = {"question": "Sky?", "yes": "right", "no": "red", "answer": "A"}
    assert not wrong(read(tmp_path, [named], columns={"choices": "yes,no"}))


def test_the_letter_form_has_the_letter(tmp_path: Path):
    examples = read(tmp_path, questions(PLACES, WAYS["from 1"]), choice_form="letter")
    assert "".join(e.response for e in examples) == "ABCDBC"
    assert examples[1].prompt.endswith("A. red\nB. right blue\nC. green\nD. pink")
