"""What a row says beside its shape: used, or refused by name; never dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nacd.data import Example, read_examples
from nacd.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue"}
AGAIN = [{"role": "user", "content": "Sea?"}, {"role": "assistant", "content": "Green"}]
SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, ASSISTANT]},
    "conversations": {
        "conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue"}]
    },
    "alpaca": {"instruction": "Sky?", "output": "Blue"},
    "lists": {"prompt": [USER], "completion": [ASSISTANT]},
    "choice": {"question": "Sky?", "choices": ["Red", "Blue"], "answer": "B"},
}
TEXTS = {"texts": {"prompt": "Sky?", "completion": "Blue"}}


def read(folder: Path, *rows: Mapping[str, Any], **options: Any) -> Sequence[Example]:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, **options)


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def labels(example: Example) -> list[bool]:
    return [message.train for message in example.messages if message.role == "assistant"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("column", ["system", "system_prompt", "systemMessage", "System Prompt"])
def test_a_system_column_opens_the_conversation(tmp_path: Path, shape: str, column: str):
    (example,) = read(tmp_path, SHAPES[shape] | {column: "Be brief."})
    assert turns(example) == [("system", "Be brief."), ("user", "Sky?"), ("assistant", "Blue")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("empty", [None, "", " ", float("nan")])
def test_an_empty_system_column_says_nothing(tmp_path: Path, shape: str, empty: Any):
    (example,) = read(tmp_path, SHAPES[shape] | {"system": empty})
    assert turns(example) == [("user", "Sky?"), ("assistant", "Blue")]


def test_a_system_column_may_be_mapped_and_may_be_absent_in_a_row(tmp_path: Path):
    rows = [SHAPES["alpaca"] | {"persona": "Be brief."}, SHAPES["alpaca"]]
    first, second = read(tmp_path, *rows, columns={"system": "persona"})
    assert [turns(e)[0] for e in (first, second)] == [("system", "Be brief."), ("user", "Sky?")]
    with pytest.raises(UserError, match="no row has the column 'sytem'"):
        read(tmp_path, *rows, columns={"system": "sytem"})


def test_a_system_column_and_a_system_turn_say_one_thing(tmp_path: Path):
    messages = [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]
    (example,) = read(tmp_path, {"messages": messages, "system": "Be brief.\n"})
    assert [message.role for message in example.messages] == ["system", "user", "assistant"]
    with pytest.raises(UserError, match=r"mine\.jsonl:1: `system` and the system turn say diff"):
        read(tmp_path, {"messages": messages, "system": "Be long."})
    blank = [{"role": "system", "content": " "}, USER, ASSISTANT]
    (example,) = read(tmp_path, {"messages": blank, "system": "Be brief."})
    assert turns(example) == [("system", "Be brief."), ("user", "Sky?"), ("assistant", "Blue")]
    with pytest.raises(UserError, match="`system` and `system_prompt` say different things"):
        read(tmp_path, SHAPES["alpaca"] | {"system": "Be brief.", "system_prompt": "Be long."})
    with pytest.raises(UserError, match="`system` is of type int, expected text"):
        read(tmp_path, SHAPES["alpaca"] | {"system": 7})


def test_a_system_column_beside_plain_text_is_refused_with_a_mend_that_works(tmp_path: Path):
    row = TEXTS["texts"] | {"system": "Be brief."}
    with pytest.raises(UserError, match=r"--columns instruction=prompt output=completion"):
        read(tmp_path, row)
    columns = {"instruction": "prompt", "output": "completion"}
    (example,) = read(tmp_path, row, columns=columns)
    assert turns(example)[0] == ("system", "Be brief.")


def test_history_is_earlier_turns_that_are_trained_on(tmp_path: Path):
    row = SHAPES["alpaca"] | {"history": [["Hi", "Hello"], ["Sea?", "Green"]], "system": "S"}
    (example,) = read(tmp_path, row)
    assert turns(example) == [
        ("system", "S"),
        *[("user", "Hi"), ("assistant", "Hello"), ("user", "Sea?"), ("assistant", "Green")],
        *[("user", "Sky?"), ("assistant", "Blue")],
    ]
    assert labels(example) == [True, True, True]
    spelled = row | {"history": json.dumps(row["history"])}
    assert turns(read(tmp_path, spelled)[0]) == turns(example)
    for empty in (None, [], "[]", ""):
        assert len(read(tmp_path, row | {"history": empty})[0].messages) == 3


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("Hi", "`history` is text, expected a list of"),
        ([["Hi"]], r"pair 1 of `history` is \['Hi'\], expected a list of two texts"),
        ([["Hi", "Hello"], "Sea?"], "pair 2 of `history` is 'Sea"),
        ([["Hi", None]], "a text of pair 1 of `history` is null"),
        ([["Hi", " "]], "the assistant's text of pair 1 of `history` is blank"),
    ],
)
def test_a_history_of_another_form_is_named(tmp_path: Path, history: Any, message: str):
    with pytest.raises(UserError, match=message):
        read(tmp_path, SHAPES["alpaca"] | {"history": history})


REFUSED = {
    "tools": [{"type": "function"}],
    "functions": [{"name": "f"}],
    "tool_calls": [{"id": "1"}],
    "toolCalls": '[{"id": "1"}]',
    "function_call": {"name": "f"},
    "reasoning_content": "Since light scatters.",
    "reasoning": "Since light scatters.",
    "thinking": "Since light scatters.",
    "thought": "Since light scatters.",
    "rationale": "Since light scatters.",
    "image": "sky.png",
    "images": ["sky.png"],
    "videos": ["sky.mp4"],
    "audios": ["sky.wav"],
    "chosen": "Blue!",
    "rejected": "Green",
    "label": False,
    "kto_tag": False,
    "weight": 0.5,
    "train": False,
    "training": True,
    "loss": 0,
    "loss_scale": 2,
    "train_detail": [1],
    "context": "On a clear day in June.",
    "query": "On a clear day?",
    "passage": "On a clear day in June.",
    "chat_template_kwargs": {"enable_thinking": True},
    "response": "Green",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_column_with_a_meaning_is_refused_by_name(tmp_path: Path, name: str):
    for good in (SHAPES | TEXTS).values():
        row = good | {name: REFUSED[name]}
        with pytest.raises(UserError, match=rf"mine\.jsonl:2 has `{name}` .*columns {name}$"):
            read(tmp_path, good, row)
        (example,) = read(tmp_path, row, ignore_columns=[name])
        assert turns(example) == [("user", "Sky?"), ("assistant", "Blue")]


@pytest.mark.parametrize("name", ["tools", "label", "context"])
@pytest.mark.parametrize("empty", [None, "", [], {}, "[]", float("nan"), {"a": None, "b": []}])
def test_an_empty_column_says_nothing(tmp_path: Path, name: str, empty: Any):
    assert read(tmp_path, SHAPES["messages"] | {name: empty})


@pytest.mark.parametrize("name", ["input", "history", "question", "prompt", "output"])
def test_columns_of_another_shape_are_refused_too(tmp_path: Path, name: str):
    for shape, row in (SHAPES | TEXTS).items():
        if name in row or (shape == "alpaca" and name in ("input", "history")):
            continue
        with pytest.raises(UserError, match=rf"has `{name}` \(a text beside the row's own\)"):
            read(tmp_path, row | {name: "Look again."})


def test_all_refused_columns_stand_in_one_message(tmp_path: Path):
    row = SHAPES["messages"] | {"images": ["a"], "tools": [{}, {"name": "f"}], "id": 3}
    with pytest.raises(UserError, match=r"--ignore-columns images tools$"):
        read(tmp_path, row)


def test_columns_without_a_meaning_are_left_out(tmp_path: Path):
    row = SHAPES["messages"] | {"id": 3, "source": "web", "category": "sky", "score": 0.5, "x": {}}
    assert turns(read(tmp_path, row)[0]) == [("user", "Sky?"), ("assistant", "Blue")]


def test_a_column_that_repeats_the_turns_is_no_loss(tmp_path: Path):
    long = "Why is the sky blue at noon, and red at dusk?"
    messages = [{"role": "user", "content": f"Say: {long}"}, ASSISTANT]
    row = {"messages": messages, "prompt": f"Say: {long}", "context": long, "response": "Blue"}
    assert turns(read(tmp_path, row)[0])[0] == ("user", f"Say: {long}")
    assert read(tmp_path, row | {"prompt": [messages[0]]})
    with pytest.raises(UserError, match="has `context`"):
        read(tmp_path, row | {"context": "Say"})  # a short text stands anywhere by chance
    with pytest.raises(UserError, match="has `prompt`"):
        read(tmp_path, row | {"prompt": "Say something else."})


def test_who_maps_a_shape_still_loses_nothing(tmp_path: Path):
    row = SHAPES["alpaca"] | {"input": "At noon."}
    columns = {"prompt": "instruction", "completion": "output"}
    with pytest.raises(UserError, match="has `input`"):
        read(tmp_path, row, columns=columns)
    dolly = {"instruction": "Sky?", "context": "At noon.", "response": "Blue", "category": "qa"}
    with pytest.raises(UserError, match=r"has `context` .*--columns input=context"):
        read(tmp_path, dolly, columns={"output": "response"})
    (example,) = read(tmp_path, dolly, columns={"output": "response", "input": "context"})
    assert example.prompt == "Sky?\n\nAt noon."
    assert read(tmp_path, dolly | {"context": ""}, columns={"output": "response"})


def test_the_group_column_counts_as_used(tmp_path: Path):
    row = SHAPES["alpaca"] | {"label": "sky"}
    assert read(tmp_path, row, group="label")[0].group == "sky"
    assert read(tmp_path, row, group="label", ignore_columns=["label"])[0].group == "sky"
    with pytest.raises(UserError, match=r"`label` \(--group-column\) is a list"):
        read(tmp_path, row | {"label": ["sky"]}, group="label")


# Turns


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize(("off", "on"), [(0, 1), (False, True), (0.0, 1.0)])
def test_a_flag_says_whether_a_turn_is_trained_on(tmp_path: Path, key: str, off: Any, on: Any):
    messages = [USER, ASSISTANT | {key: off}, *AGAIN[:1], AGAIN[1] | {key: on}]
    (example,) = read(tmp_path, {"messages": messages})
    assert labels(example) == [False, True]
    messages = [USER | {key: off}, ASSISTANT | {key: None}, *AGAIN]
    (example,) = read(tmp_path, {"messages": messages})
    assert labels(example) == [True, True]
    sharegpt = [
        *[{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Red", key: off}],
        *[{"from": "human", "value": "No."}, {"from": "gpt", "value": "Blue"}],
    ]
    (example,) = read(tmp_path, {"conversations": sharegpt})
    assert labels(example) == [False, True]


def test_an_exported_conversation_comes_back_with_its_labels(tmp_path: Path):
    marked = [USER, ASSISTANT, *AGAIN]
    marked = [turn | {"train": turn is marked[-1]} for turn in marked]
    (example,) = read(tmp_path, {"messages": marked})
    assert labels(example) == [False, True]


def test_the_completion_may_have_flags_and_the_prompt_is_never_trained_on(tmp_path: Path):
    row = {"prompt": [USER, ASSISTANT, AGAIN[0]], "completion": [AGAIN[1] | {"weight": 1}]}
    assert labels(read(tmp_path, row)[0]) == [False, True]
    row["prompt"] = [USER, ASSISTANT | {"weight": 1}, AGAIN[0]]
    with pytest.raises(UserError, match="`weight` of turn 2 of `prompt` asks to train on it"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([USER | {"train": True}, ASSISTANT], "`train` of turn 1 of .* a turn of the user.*false"),
        ([USER | {"weight": 1}, ASSISTANT], "`weight` of turn 1 of `messages` asks to train on"),
        ([USER, ASSISTANT | {"weight": 0.5}], "`weight` of turn 2 of `messages` is 0.5, expected"),
        ([USER, ASSISTANT | {"train": "no"}], "`train` of turn 2 of `messages` is 'no', expected"),
        ([USER, ASSISTANT | {"loss": 2}], "`loss` of turn 2 of `messages` is 2, expected 0, 1"),
        ([USER, ASSISTANT | {"loss": True, "weight": 0}], "`loss` and `weight` of turn 2 .* diff"),
        ([USER, ASSISTANT | {"loss": 0}], "`loss` says that no turn of the assistant is trained"),
        (
            [USER, ASSISTANT, AGAIN[0], AGAIN[1] | {"weight": 0}],
            "`weight` says that the last turn of `messages` is not trained on. Take out what",
        ),
    ],
)
def test_flags_that_cannot_be_heeded_are_named(tmp_path: Path, turns: Any, message: str):
    good = {"messages": [USER, ASSISTANT]}
    with pytest.raises(UserError, match=r"mine\.jsonl:2.*" + message):
        read(tmp_path, good, {"messages": turns})
    names = ["weight", "train", "loss"]
    assert all(labels(read(tmp_path, {"messages": turns}, ignore_columns=names)[0]))


@pytest.mark.parametrize(
    "name",
    [*(sorted(REFUSED.keys() - {"weight", "train", "training", "loss"})), "name", "text", "system"],
)
def test_a_key_of_a_turn_with_a_meaning_is_refused_by_name(tmp_path: Path, name: str):
    odd = ASSISTANT | {name: "x"}
    with pytest.raises(UserError, match=rf"mine\.jsonl:1: turn 2 of `messages` has `{name}` .*"):
        read(tmp_path, {"messages": [USER, odd]})
    (example,) = read(tmp_path, {"messages": [USER, odd]}, ignore_columns=[name])
    assert example.response == "Blue"
    for empty in (None, "", [], {}, {"name": None}):
        assert read(tmp_path, {"messages": [USER, ASSISTANT | {name: empty, "id": 7}]})


def test_a_call_is_named_before_the_null_beside_it(tmp_path: Path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    with pytest.raises(UserError, match="turn 2 of `messages` has `tool_calls`"):
        read(tmp_path, {"messages": [USER, call, *AGAIN]})


@pytest.mark.parametrize("role", ["tool", "function", "function_call", "observation", "Tool"])
def test_turns_of_tools_are_named_as_such(tmp_path: Path, role: str):
    messages = [USER, {"role": role, "content": "3"}, ASSISTANT]
    with pytest.raises(UserError, match=rf"by '{role}': calls of tools.*Leave such rows out"):
        read(tmp_path, {"messages": messages})


@pytest.mark.parametrize("kind", ["thinking", "image_url", "image", "input_audio", "refusal"])
def test_a_part_that_is_no_text_is_named_by_its_type(tmp_path: Path, kind: str):
    parts = [{"type": kind, kind: "x", "text": None}, {"type": "text", "text": "Blue", kind: None}]
    with pytest.raises(UserError, match=rf"turn 2 of `messages` has a part of type '{kind}'"):
        read(tmp_path, {"messages": [USER, ASSISTANT | {"content": parts}]})
    (example,) = read(tmp_path, {"messages": [USER, ASSISTANT | {"content": parts[1:]}]})
    assert example.response == "Blue"
    odd = {"messages": [USER, ASSISTANT | {"content": [parts[1] | {"image": "x"}]}]}
    with pytest.raises(UserError, match="a part of turn 2 of `messages` has `image`"):
        read(tmp_path, odd)
    assert read(tmp_path, odd, ignore_columns=["image"])


def test_a_blank_turn_is_trained_on_only_if_it_is_flagged_off(tmp_path: Path):
    blank = {"role": "assistant", "content": ""}
    with pytest.raises(UserError, match="turn 2 of `messages`, the assistant's, is blank"):
        read(tmp_path, {"messages": [USER, blank, *AGAIN]})
    (example,) = read(tmp_path, {"messages": [USER, blank | {"train": False}, *AGAIN]})
    assert labels(example) == [False, True]


@pytest.mark.parametrize("odd", [None, 3, "Sky?", ["user", "Sky?"], {}, {"role": "user"}])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_odd_turns_are_named_wherever_they_stand(tmp_path: Path, odd: Any, place: int, column: str):
    turns = [USER, ASSISTANT]
    turns.insert(place, odd)
    with pytest.raises(UserError, match=rf"mine\.jsonl:1: turn {place + 1} of `{column}`"):
        read(tmp_path, {column: turns})


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": None, "content": "Sky?"}, "is by None, expected one of system, user"),
        ({"role": 1, "content": "Sky?"}, "is by 1, expected one of system, user"),
        ({"role": "developer", "content": "Sky?"}, "is by 'developer', expected one of"),
        ({"role": "user", "content": None}, "`content` of turn 1 of `messages` is null"),
        ({"role": "user", "content": 3}, "`content` of turn 1 of `messages` is of type int"),
        ({"role": "user", "from": "gpt", "content": "Sky?"}, "`role` and `from` of turn 1"),
        ({"role": "user", "content": "Sky?", "value": "Sea?"}, "`content` and `value` of turn 1"),
    ],
)
def test_odd_values_in_a_turn_are_named(tmp_path: Path, turn: Any, message: str):
    with pytest.raises(UserError, match=r"mine\.jsonl:1.*" + re.escape(message)):
        read(tmp_path, {"messages": [turn, ASSISTANT]})


@pytest.mark.parametrize("value", [None, 3, "Sky?", {"role": "user"}, [[USER, ASSISTANT]]])
def test_what_is_no_list_of_turns_is_named(tmp_path: Path, value: Any):
    with pytest.raises(UserError, match=r"mine\.jsonl:1: .*`messages`"):
        read(tmp_path, {"messages": value})


def test_both_ways_to_write_a_turn_may_be_mixed(tmp_path: Path):
    union = {"role": None, "content": None, "from": "gpt", "value": "Blue", "weight": None}
    for turns_ in ([USER, union], [{"from": "human", "value": "Sky?"}, ASSISTANT]):
        for column in ("messages", "conversations"):
            (example,) = read(tmp_path, {column: turns_})
            assert turns(example) == [("user", "Sky?"), ("assistant", "Blue")]


def test_columns_may_not_be_mapped_and_ignored_at_once(tmp_path: Path):
    with pytest.raises(UserError, match=r"--columns output=x and --ignore-columns x: keep one"):
        read(
            tmp_path,
            {"instruction": "Sky?", "x": "Blue"},
            columns={"output": "x"},
            ignore_columns=["x"],
        )


# Preferences


def preference(prompt: Any, *before: Any) -> dict[str, Any]:
    chosen, rejected = [*before, ASSISTANT], [*before, {"role": "assistant", "content": "Red"}]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


SYSTEM = {"role": "system", "content": "Be brief."}
CHOSEN = {"prompt": "prompt", "completion": "chosen"}


@pytest.mark.parametrize(
    ("row", "first"),
    [
        (preference([USER], USER), "user"),
        (preference("Sky?", USER), "user"),
        (preference("Sky? ", USER), "user"),
        (preference([USER]), "user"),
        (preference("Sky?"), "user"),
        (preference([SYSTEM, USER], SYSTEM, USER), "system"),
        (preference([SYSTEM, USER], USER), "system"),
    ],
)
def test_the_prompt_stands_once_where_the_chosen_conversation_repeats_it(
    tmp_path: Path, row: Any, first: str
):
    (example,) = read(tmp_path, row, columns=CHOSEN)
    assert [m.role for m in example.messages] == ["system", "user", "assistant"][
        -len(example.messages) :
    ]
    assert (example.messages[0].role, example.prompt.strip()) == (first, "Sky?")
    assert example.response == "Blue"


def test_a_whole_conversation_is_mapped_as_messages(tmp_path: Path):
    row = preference("Sky?", USER)
    for found in (row, {key: row[key] for key in ("chosen", "rejected")}):
        (example,) = read(tmp_path, found, columns={"messages": "chosen"})
        assert turns(example) == [("user", "Sky?"), ("assistant", "Blue")]


def test_the_chosen_answer_may_be_one_turn_alone(tmp_path: Path):
    human, gpt = SHAPES["conversations"]["conversations"]
    row = {"conversations": [human], "chosen": gpt, "rejected": gpt | {"value": "Red"}}
    with pytest.raises(UserError, match="--columns prompt=conversations completion=chosen"):
        read(tmp_path, row)
    columns = {"prompt": "conversations", "completion": "chosen"}
    (example,) = read(tmp_path, row, columns=columns)
    assert turns(example) == [("user", "Sky?"), ("assistant", "Blue")]


@pytest.mark.parametrize(
    ("row", "mend"),
    [
        (preference([USER], USER), "--columns prompt=prompt completion=chosen"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER]}, "--columns messages=chosen"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt=prompt completion=chosen"),
        ({"chosen": "Human: a", "rejected": "Human: b"}, "write it as turns"),
    ],
)
def test_a_preference_is_told_how_to_be_read(tmp_path: Path, row: Any, mend: str):
    with pytest.raises(UserError, match=f"looks like a preference.*{mend}"):
        read(tmp_path, row)


@pytest.mark.parametrize("before", [[AGAIN[0]], [SYSTEM, USER]])
def test_a_completion_that_opens_otherwise_is_no_answer(tmp_path: Path, before: Any):
    with pytest.raises(UserError, match=r"--columns messages=chosen --ignore-columns prompt"):
        read(tmp_path, preference([USER], *before), columns=CHOSEN)


def test_text_that_holds_its_prompt_in_all_rows_is_refused(tmp_path: Path):
    rows = [{"prompt": f"Q{i}?", "completion": f"Q{i}? Because."} for i in range(3)]
    with pytest.raises(UserError, match=r"mine\.jsonl:1: the completion begins with the whole"):
        read(tmp_path, *rows)
    rows[1]["completion"] = "Because."
    assert len(read(tmp_path, *rows)) == 3  # one may begin like its prompt by chance
