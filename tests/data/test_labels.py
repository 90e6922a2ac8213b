"""Labels over a table of conversations and chat templates: TRL's, and the assistant's own words.

Beside each template stands what it writes, by hand: the oracle for which words are labels.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from chats import (
    CHATS,
    QWEN3,
    TALKS,
    THOUGHT,
    TOKENIZERS,
    Chat,
    byte_tokenizer,
    chat_template,
    talk,
)
from test_template import encoded_by_us, prepared_by_trl
from transformers import PreTrainedTokenizerFast

from nacd.data import Example, Template, make_template
from nacd.errors import UserError
from whole import check_whole


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def made(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def encodable(template: Template, turns: Any) -> tuple[list[Example], set[str]]:
    """The table's rows that the template writes, and the names of those that it does not."""
    rows, refused = [], set()
    for name, messages in TALKS.items():
        example = Example(messages, f"mine.jsonl:{name}")
        try:
            check_whole(template, example, turns)
        except UserError as error:
            refused.add(str(error).removeprefix("mine.jsonl:")[: len(name)])
        else:
            rows.append(example)
    return rows, refused


@pytest.mark.parametrize("name", CHATS)
def test_the_last_turns_labels_are_those_of_sft_trainer(name: str, made: Any):
    template = chat_template(made, CHATS[name].text)
    rows, refused = encodable(template, "last")
    assert refused == CHATS[name].refuses
    assert encoded_by_us(template, rows) == prepared_by_trl(made, [template.row(e) for e in rows])


def by_tokens(template: Template, example: Example) -> list[tuple[str, bool]]:
    """The row's characters, and whether each belongs to a label; white space left out."""
    row = template.encode(example)
    tokens = zip(row.ids, row.response, strict=True)
    runs = [(on, [i for i, _ in run]) for on, run in itertools.groupby(tokens, lambda t: t[1])]
    words = [(str(template.tokenizer.decode(ids)), on) for on, ids in runs]
    return [(c, on) for text, on in words for c in text if not c.isspace()]


def by_hand(chat: Chat, example: Example) -> list[tuple[str, bool]]:
    last, letters = len(example.messages) - 1, []
    for words, i in chat.by_hand(example.messages):
        on = i is not None and (i == last or example.messages[i].train)
        letters += [(c, on) for c in words if not c.isspace()]
    return letters


@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize("name", CHATS)
def test_labels_are_the_words_of_the_assistant_and_the_end_of_its_turns(name: str, markers: bool):
    chat = CHATS[name]
    template = chat_template(byte_tokenizer(markers=markers, trim=markers), chat.text)
    rows, refused = encodable(template, "all")
    assert refused == chat.refuses | chat.refuses_all
    for example in rows:
        ours, theirs = by_tokens(template, example), by_hand(chat, example)
        if not markers:  # of an end of turn that is plain text, a token may reach into the next
            assert [c for c, _ in ours] == [c for c, _ in theirs]
            theirs = [(c, mine and on) for (c, mine), (_, on) in zip(ours, theirs, strict=True)]
        assert ours == theirs, example.source


RAWS = {
    "qa": "Question: {}\nAnswer: ",
    "alpaca": "### Instruction:\n{}\n\n### Response:\n",
    "plain": "{}\n",
    "verbatim": "{}",
    "Q: {prompt} A:  {response}": "Q: {} A:  ",
}


@pytest.mark.parametrize("name", RAWS)
def test_raw_labels_are_the_response_and_those_of_sft_trainer(name: str, made: Any):
    template = make_template(name, made, [])
    rows, refused = encodable(template, "last")
    one_turn = {"U", "SU", "SSU"}
    initials = {n: "".join(m.role[0].upper() for m in ms[:-1]) for n, ms in TALKS.items()}
    several = {n for n, roles in initials.items() if roles not in one_turn}
    # There a token spans words, so that TRL's labels begin several words before the border.
    spanning = {"long"} if made.unk_token and name == "verbatim" else set()
    assert refused == several | spanning
    for example in (Example(TALKS[n], f"mine.jsonl:{n}") for n in spanning):
        with pytest.raises(UserError, match="End the prompt with a line break, or choose another"):
            template.encode(example)
    assert encoded_by_us(template, rows) == prepared_by_trl(made, [template.row(e) for e in rows])
    for example in rows:
        asked = "\n\n".join(m.content for m in example.messages[:-1])
        text = template.written(example).text
        said = example.response if example.response.endswith("</s>") else example.response + "</s>"
        assert text == f"{RAWS[name].replace('{}', asked)}{said}"
        assert encoded_by_us(template, [example], "all") == encoded_by_us(template, [example])


def test_a_word_that_the_border_parts_is_a_label_as_in_trl():
    made = byte_tokenizer(markers=True)
    template = make_template("verbatim", made, [])
    parted = Example(talk("U: What is bl", "A: ue."), "mine.jsonl:1")
    row = check_whole(template, parted)
    labels = made.decode([i for i, on in zip(row.ids, row.response, strict=True) if on])
    assert labels.strip() == "blue.</s>"
    assert encoded_by_us(template, [parted]) == prepared_by_trl(made, [template.row(parted)])


def test_what_may_be_learned_does_not_hang_on_how_the_template_takes_the_response():
    made = byte_tokenizer(markers=True)
    template = chat_template(made, QWEN3)
    for asked in ("U:  What?\n", "U: \n\n What? ", "U: What?", "U: "):
        plain, thought = (template.encode(Example(talk(asked, a), "")) for a in ("A: So.", THOUGHT))
        learnable = [row.ids[slice(*row.prompt)] for row in (plain, thought)]
        assert learnable[0] == learnable[1]
        assert made.decode(list(learnable[0])).strip() == asked[3:].strip()
        assert len(made.decode(list(learnable[0]))) >= len(asked[3:].rstrip("\n").lstrip("\n"))


def test_rows_of_one_kind_are_rendered_twice_each(monkeypatch: pytest.MonkeyPatch):
    template = chat_template(byte_tokenizer(markers=True), QWEN3)
    names = ["one", "turns", "system and turns", "thought in context"]
    rows = [Example(TALKS[name], name) for name in names]
    for row in rows:
        template.encode(row)
    rendered = []
    base = PreTrainedTokenizerFast.apply_chat_template

    def counted(self: Any, *given: Any, **options: Any) -> Any:
        rendered.append(given)
        return base(self, *given, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", counted)
    for row, expected in zip(rows, [2, 2, 2, 3], strict=True):
        rendered.clear()
        template.encode(row)
        assert len(rendered) == expected
