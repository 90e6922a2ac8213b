"""Every shape of row to messages, and the message for every row that has no use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nacd.data import Example
from nacd.data.choices import ChoiceForm
from nacd.data.schema import recognise
from nacd.errors import UserError


def convert(
    *rows: Any, form: ChoiceForm = "cloze", columns: Mapping[str, str] | None = None
) -> Sequence[Example]:
    schema = recognise("mine.jsonl:1", rows[0], columns=columns)
    placed = [(f"mine.jsonl:{number}", row) for number, row in enumerate(rows, start=1)]
    return schema.examples(placed, choice_form=form)


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


SYSTEM, USER, ASSISTANT = ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")
CONVERSATION = [SYSTEM, USER, ASSISTANT, ("user", "Sky?"), ("assistant", "Blue")]
MESSAGES = [{"role": role, "content": content} for role, content in CONVERSATION]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": NAMES[role], "value": content} for role, content in CONVERSATION]
PAIR = [("user", "Sky?"), ("assistant", "Blue")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": MESSAGES}, CONVERSATION),
        ({"conversations": SHAREGPT}, CONVERSATION),
        ({"conversations": MESSAGES}, CONVERSATION),
        ({"prompt": "Sky?", "completion": "Blue", "seed_row": 3, "tokens_changed": 0.5}, PAIR),
        ({"prompt": MESSAGES[:-1], "completion": MESSAGES[-1:]}, CONVERSATION),
        ({"instruction": "Sky?", "output": "Blue"}, PAIR),
        ({"instruction": "Sky?", "input": "", "output": "Blue"}, PAIR),
        ({"instruction": "Sky?", "input": None, "output": "Blue"}, PAIR),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3"},
            [("user", "Add.\n\n1, 2"), ("assistant", "3")],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Sky?"}]},
                       {"role": "assistant", "content": "Blue"}]}, PAIR),
    ],
)  # fmt: skip
def test_shapes_are_recognised(row: Any, expected: list[tuple[str, str]]):
    (example,) = convert(row)
    assert turns(example) == expected
    assert example.choices is None


ARC = {"question": "Sky?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}}


@pytest.mark.parametrize(
    "row",
    [
        ARC | {"answerKey": "2"},
        ARC | {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Sky?", "choices": ["red", "blue"], "answer": "B"},
        {"question": "Sky?", "choices": ["red", "blue"], "answer": "blue"},
        {"question": "Sky?", "A": "red", "B": "blue", "answer": "B"},
    ],
)
def test_multiple_choice_in_both_forms(row: Any):
    (cloze,) = convert(row)
    assert turns(cloze) == [("user", "Sky?"), ("assistant", "blue")]
    assert (cloze.choices, cloze.answer) == (("red", "blue"), 1)
    (letter,) = convert(row, form="letter")
    assert turns(letter) == [("user", "Sky?\nA. red\nB. blue"), ("assistant", "B")]
    assert (letter.choices, letter.answer) == (("A", "B"), 1)


def test_columns_are_mapped():
    row = {"q": "Sky?", "a": "Blue", "messages": "not these"}
    (example,) = convert(row, columns={"prompt": "q", "completion": "a"})
    assert turns(example) == PAIR
    row = {"instruction": "Sky?", "response": "Blue"}
    (example,) = convert(row, columns={"output": "response"})
    assert turns(example) == PAIR
    row = {"stem": "Sky?", "options": ["red", "Blue"], "key": "B"}
    mapping = {"question": "stem", "choices": "options", "answer": "key"}
    (example,) = convert(row, columns=mapping)
    assert turns(example) == PAIR
    row = {"prompt": "Blue", "completion": "Sky?"}  # the other way round
    (example,) = convert(row, columns={"prompt": "completion", "completion": "prompt"})
    assert turns(example) == PAIR


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"propmt": "q"}, r"--columns names 'propmt'.*expected messages.*prompt"),
        ({"prompt": "x"}, r"mine\.jsonl:1 has no column 'x', which --columns prompt=x.*`q`, `a`"),
    ],
)
def test_wrong_mappings_are_named(columns: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        convert({"q": "Sky?", "a": "Blue"}, columns=columns)


def test_an_unknown_shape_lists_what_was_seen_and_what_is_known():
    with pytest.raises(UserError) as caught:
        convert({"q": "Sky?", "a": "Blue"})
    message = str(caught.value)
    assert "mine.jsonl:1 has the columns `q`, `a`" in message
    for known in ("`messages`", "`conversations`", "`completion`", "Alpaca", "ARC", "MMLU"):
        assert known in message
    assert "--columns" in message


def test_rows_of_another_shape_are_named():
    with pytest.raises(UserError, match=r"mine\.jsonl:2 is of another shape.*`text`.*`completion`"):
        convert({"prompt": "Sky?", "completion": "Blue"}, {"text": "Sky? Blue"})
    with pytest.raises(UserError, match=r"mine\.jsonl:2 is not a JSON object"):
        convert({"prompt": "Sky?", "completion": "Blue"}, ["Sky?", "Blue"])


def test_a_union_of_shapes_has_nulls_for_the_others():
    messages = {"messages": MESSAGES, "prompt": None, "completion": None}
    texts = {"messages": None, "prompt": "Sky?", "completion": "Blue"}
    assert turns(convert(messages)[0]) == CONVERSATION
    assert turns(convert(texts)[0]) == PAIR
    for rows in ((messages, texts), (texts, messages)):
        with pytest.raises(UserError, match=r"mine\.jsonl:2 is of another shape"):
            convert(*rows)


GOOD = {
    "prompt": {"prompt": "Sky?", "completion": "Blue"},
    "instruction": {"instruction": "Sky?", "output": "Blue"},
    "messages": {"messages": MESSAGES},
    "question": {"question": "Sky?", "choices": ["red", "blue"], "answer": "B"},
}


@pytest.mark.parametrize(
    ("shape", "row", "why"),
    [
        ("prompt", {"prompt": "Sky?"}, "`completion` is missing"),
        ("prompt", {"prompt": "Sky?", "completion": None}, "`completion` is null"),
        ("prompt", {"prompt": "Sky?", "completion": " \n"}, "`completion` is blank"),
        ("prompt", {"prompt": MESSAGES[:-1], "completion": []}, "`completion` is an empty list"),
        ("instruction", {"instruction": "Sky?"}, "`output` is missing"),
        ("instruction", {"instruction": "Sky?", "output": ""}, "`output` is blank"),
        ("messages", {"messages": MESSAGES[:-1]}, "`messages` ends with a turn of the user"),
        ("messages", {"messages": []}, "`messages` is an empty list"),
        (
            "messages",
            {"messages": [MESSAGES[1], {"role": "assistant", "content": " "}]},
            "the last assistant turn of `messages` is blank",
        ),
        (
            "messages",
            {"messages": [MESSAGES[1], {"role": "assistant", "content": None}]},
            "`content` of turn 2 of `messages` is null",
        ),
        ("question", {"question": "Sky?", "choices": ["red", "blue"]}, "`answer` is missing"),
        ("question", GOOD["question"] | {"answer": None}, "`answer` is null"),
        ("question", GOOD["question"] | {"choices": ["red", " "]}, "the right choice is blank"),
    ],
)
def test_rows_without_a_response_are_named(shape: str, row: Any, why: str):
    with pytest.raises(UserError, match=f"^mine.jsonl:2 has no response: {why}"):
        convert(GOOD[shape], row)


@pytest.mark.parametrize(
    ("shape", "row", "message"),
    [
        ("prompt", {"prompt": None, "completion": "Blue"}, "`prompt` is null, expected text"),
        ("prompt", {"prompt": 3, "completion": "Blue"}, "`prompt` is of type int, expected text"),
        ("messages", {"messages": "Hi"}, "`messages` is text, expected a list of turns"),
        (
            "messages",
            {"messages": [{"text": "Hi"}]},
            "turn 1 of `messages` has the keys `text`, expected `role` and `content`",
        ),
        (
            "messages",
            {"messages": [{"role": "tool", "content": "4"}]},
            "turn 1 of `messages` is by 'tool': calls of tools",
        ),
        ("messages", {"messages": [MESSAGES[0], MESSAGES[2]]}, "no user turn right before"),
        ("question", GOOD["question"] | {"choices": ["red"]}, "expected 2 to 26 choices"),
    ],
)
def test_rows_that_cannot_be_used_are_named(shape: str, row: Any, message: str):
    with pytest.raises(UserError, match=r"^mine\.jsonl:2: .*" + message):
        convert(GOOD[shape], row)


def test_an_answer_key_that_is_no_label_is_named():
    with pytest.raises(UserError, match=r"`answerKey` is 'C', expected one of its labels 1, 2"):
        convert(ARC | {"answerKey": "C"})
