"""Rows that a chat template would spoil: refused, with the message, the reason and the mend."""

from __future__ import annotations

from typing import Any

import pytest
from chats import (
    CHATML,
    CHATS,
    GEMMA,
    MISTRAL,
    NO_HEADER,
    PHI3,
    QWEN3,
    R1,
    TALKS,
    byte_tokenizer,
    chat_template,
    talk,
)

from nacd.data import Example, Message, encode_all, make_template
from nacd.data.written import Turns
from nacd.errors import UserError

WORDS = "{{ m.content }}"
TURN = "{% for m in messages %}"
BRIEF = Example(
    talk("S: Be brief.", "U: What is <b>this</b>?\nSay.", "A: It's blue & wide, \nso wide."),
    "mine.jsonl:7",
)
ANOTHER = "Choose a raw --template (qa, alpaca, plain) or another --model, or mend the template"
TO_USER = "Put its words at the head of the user message that follows it."
SPOILT = {
    "lower": (CHATML.replace(WORDS, "{{ m.content | lower }}"), r"message 1 \(system\).*'Be brief"),
    "upper": (CHATML.replace(WORDS, "{{ m.content | upper }}"), r"message 2 \(user\).*its letters"),
    "escape": (CHATML.replace(WORDS, "{{ m.content | e }}"), r"message 2 \(user\).*changes '<b>"),
    "cut": (
        CHATML.replace(WORDS, "{{ m.content[:25] }}"),
        r"message 3 \(assistant\).*cuts or changes 'e\.'",
    ),
    "twice": (CHATML.replace(WORDS, WORDS * 2), r"message 2 \(user\).*more than once"),
    "no system": (CHATML.replace(TURN, "{% for m in messages if m.role != 'system' %}"), TO_USER),
    "no answer": (
        CHATML.replace(TURN, "{% for m in messages if m.role != 'assistant' %}"),
        r"message 3 \(assistant\) as it stands: it leaves it out",
    ),
    "no words": (
        CHATML.replace(WORDS, "{{ m.content[0].text }}"),
        r"message 2 \(user\).*leaves it out",
    ),
    "white space": (
        CHATML.replace(WORDS, "{{ m.content | replace('\n', ' ') }}"),
        r"message 2 \(user\).*white space inside it, '.*\\nSay\.' to '.* Say\.'\. Write that white",
    ),
    "system in the last turn": (
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>"
        "{% if loop.last and m.role == 'user' %}{{ messages[0].content }} {% endif %}"
        "{{ m.content }}<|end|>{% endfor %}",
        TO_USER,
    ),
    "title": (
        CHATML.replace("{{ m.role }}", "{{ m.role }} {{ m.content[:4] }}"),
        "writes '.*Be b' before message 1, and '.*prob' there when the row's words change",
    ),
    "footer": (CHATML + "The end.", "writes '.*The end.' behind the last answer alone"),
    "no header": (
        NO_HEADER,
        r"no generation prompt.*'<\|im_start\|>assistant\\n'\).*Write that header",
    ),
    "always asks": (NO_HEADER + "<|im_start|>assistant\n", "writes the header of another answer"),
    "other header": (
        NO_HEADER + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        r"as it does where it asks for an answer, so that '<\|im_start\|>assistant\\n' would be",
    ),
    "last is first": (CHATML.replace("in messages", "in messages[::-1]"), "behind the answer"),
    "mistaken": (CHATML.replace(WORDS, "{{ m.content + 1 }}"), "refuses the row .*concatenate"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_template_that_spoils_a_row_is_refused_with_row_message_and_mend(name: str):
    text, said = SPOILT[name]
    with pytest.raises(UserError, match=said) as caught:
        chat_template(byte_tokenizer(markers=True), text).encode(BRIEF)
    message = str(caught.value)
    assert message.startswith("mine.jsonl:7: the model's chat template ")
    assert ANOTHER in message or "Put its words" in message or "Write that" in message
    assert message.count("mine.jsonl") == 1


@pytest.mark.parametrize(
    ("messages", "mend"),
    [
        (talk("S: Be brief.", "U: What?", "A: It is."), "Put the words of a system message at"),
        (talk("U: What?", "U: Why?", "A: It is."), "Join messages of one role that follow"),
        (
            talk("A: Hi.", "U: What?", "A: It is."),
            "Put a user message before the assistant's first",
        ),
        (
            talk("A: Hi.", "S: Be brief.", "U: What?", "U: Why?", "A: It is."),
            "Put the words of a system message at the head of the user message that follows, and "
            "join messages of one role that follow each other, and put a user message before",
        ),
    ],
)
def test_the_mend_of_a_refused_row_is_one_that_the_template_accepts(
    messages: tuple[Message, ...], mend: str
):
    template = chat_template(byte_tokenizer(markers=True), GEMMA)
    with pytest.raises(UserError) as caught:
        template.encode(Example(messages, "mine.jsonl:1"))
    assert mend in str(caught.value)
    assert "delete" not in str(caught.value)


def test_a_response_must_not_begin_as_the_generation_prompt_does():
    template = chat_template(byte_tokenizer(markers=True), R1)
    row = Example(talk("U: What?", "A: <tool> it is"), "mine.jsonl:2")
    with pytest.raises(UserError, match=r"with '<think>\\n', so that message 2 .* without its '<'"):
        template.encode(row)


def test_reasoning_that_only_earlier_turns_lose_is_mended_by_a_row_of_its_own():
    rows = [Example(TALKS["thought before"], "mine.jsonl:1")]
    cut = r"message 2 \(assistant\) as it stands: it leaves out '<think>\\nThe sky, hm"
    for name, mend in {"qwen3": "a row of its own, or no label", "r1": "another --model"}.items():
        template = chat_template(byte_tokenizer(markers=True), CHATS[name].text)
        with pytest.raises(UserError, match=f"{cut}.*{mend}"):
            template.encode(rows[0])
        assert encode_all(template, rows, 512, turns="last")[2].shortened == 1


def test_the_end_of_a_turn_is_what_stands_behind_every_one():
    ends = {
        CHATML: "<|im_end|>\n",
        PHI3: "<|end|>\n",
        # The last turn ends with another special token than the others.
        PHI3.replace("<|end|>", "{{ '</s>' if loop.last else '<|end|>' }}"): "",
        MISTRAL: "</s>",
        R1.replace("{{ eos_token }}", ""): "",
    }
    for text, end in ends.items():
        made = byte_tokenizer(markers=True)
        made.chat_template = text

        def render(messages: Any, opening: bool, made: Any = made) -> str:
            turns = [{"role": m.role, "content": m.content} for m in messages]
            return made.apply_chat_template(turns, tokenize=False, add_generation_prompt=opening)

        turns = Turns(render, made.all_special_tokens)
        for name in ("one", "turns"):
            assert turns.closing(TALKS[name]) == end


def test_what_templates_leave_out_and_put_in_is_said_once():
    template = chat_template(byte_tokenizer(markers=True), QWEN3)
    names = ["one", "turns", "thought", "thought in context", "thought twice"]
    rows, _, dropped = encode_all(template, [Example(TALKS[n], n) for n in names], 512)
    assert [row.shortened for row in rows] == [0, 0, 0, 1, 1]
    block = "<think>\n\n</think>\n\n"
    assert [row.lead for row in rows] == [block, block, "", block, ""]
    assert (dropped.count, dropped.shortened, dropped.leads) == (0, 2, {block: 3})
    assert dropped.message == (
        "in 2 of 5 rows the chat template leaves out the beginning of earlier assistant turns "
        "(their reasoning), which are no labels there; in 3 of 5 rows the chat template writes "
        r"'<think>\n\n</think>\n\n' before the response, and it is learned with it, as in TRL"
    )
    plain = chat_template(byte_tokenizer(markers=True), CHATML)
    assert encode_all(plain, [Example(TALKS[n], n) for n in names], 512)[2].message == ""


@pytest.mark.parametrize(
    "messages",
    [
        talk("A: It is."),
        talk("S: Be brief.", "A: It is."),
        talk("U: What?", "A: It is.", "A: It was."),
    ],
)
@pytest.mark.parametrize("name", ["chat", "plain"])
def test_a_row_needs_a_user_message_before_its_last_answer(
    name: str, messages: tuple[Message, ...]
):
    made = byte_tokenizer(markers=True)
    made.chat_template = CHATML
    template = make_template(name, made, [])
    with pytest.raises(UserError, match=r"mine\.jsonl:3 has no user message before its last"):
        template.encode(Example(messages, "mine.jsonl:3"))
