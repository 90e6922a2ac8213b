"""Labels over a table of conversations and chat templates: TRL's, and the assistant's own words.

The templates are of the structure of public ones, in the shortest words that show it. Beside each
stands what it writes, by hand: the oracle for which words are labels.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_template import encoded_by_us, prepared_by_trl
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from nacd.data import Example, Message, Template, encode_all, make_template
from nacd.data.written import Turns
from nacd.errors import UserError
from whole import check_whole

Parts = list[tuple[str, int | None]]
"""A row's text in parts; the index of the message whose label a part is, or None."""

ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe of help.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}{% for m in messages %}"
    + ALTERNATE
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
    "{{ bos_token }}{% for m in turns %}" + ALTERNATE + "{% if m.role == 'user' %}[INST] "
    "{% if system is defined and m == asked[-1] %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% set ns = namespace(query=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set words = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}{% if '</think>' in words %}"
    "{% set thought = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.query and (loop.last or thought) %}"
    "<think>\n{{ thought }}\n</think>\n\n{{ words.lstrip('\n') }}{% else %}{{ words }}{% endif %}"
    "{% else %}{{ words }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_THINKS = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ ns.system }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
KEEPS_THOUGHT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NO_HEADER = CHATML.partition("{% if add_generation_prompt %}")[0]

CHATML_MARKERS = ["<|im_start|>", "<|im_end|>"]
LLAMA_MARKERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"]
GEMMA_MARKERS = ["<start_of_turn>", "<end_of_turn>"]
PHI_MARKERS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|User|>", "<|Assistant|>"]
MARKERS = CHATML_MARKERS + LLAMA_MARKERS + GEMMA_MARKERS + PHI_MARKERS


def turned(
    messages: tuple[Message, ...],
    header: str,
    end: str,
    *,
    names: dict[str, str] | None = None,
    trim: bool = False,
) -> Parts:
    """Every message between a header with its role and an end."""
    parts: Parts = []
    for i, m in enumerate(messages):
        words = m.content.strip() if trim else m.content
        parts.append((header.format((names or {}).get(m.role, m.role)), None))
        parts.append((words + end, i if m.role == "assistant" else None))
    return parts


def chatml(messages: tuple[Message, ...]) -> Parts:
    return turned(messages, "<|im_start|>{}\n", "<|im_end|>\n")


def keeps_thought(messages: tuple[Message, ...]) -> Parts:
    parts: Parts = []
    for text, i in chatml(messages):
        asked = "<think>" if i is not None and text.startswith("<think>") else ""
        parts += [(asked, None), (text.removeprefix(asked), i)]
    return parts


def default(messages: tuple[Message, ...]) -> Parts:
    own = [] if messages[0].role == "system" else [Message("system", "Be of help.")]
    shift = len(own)
    parts = chatml((*own, *messages))
    return [(text, None if i is None else i - shift) for text, i in parts]


def llama3(messages: tuple[Message, ...]) -> Parts:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return [("<s>", None), *turned(messages, header, "<|eot_id|>", trim=True)]


def gemma(messages: tuple[Message, ...]) -> Parts:
    names = {"assistant": "model"}
    parts = turned(messages, "<start_of_turn>{}\n", "<end_of_turn>\n", names=names, trim=True)
    return [("<s>", None), *parts]


def mistral(messages: tuple[Message, ...]) -> Parts:
    parts: Parts = [("<s>", None)]
    users = [i for i, m in enumerate(messages) if m.role == "user"]
    for i, m in enumerate(messages):
        if m.role == "user":
            system = messages[0].content + "\n\n"
            merged = messages[0].role == "system" and i == users[-1]
            parts.append((f"[INST] {system * merged}{m.content}[/INST]", None))
        elif m.role == "assistant":
            parts.append((f" {m.content}</s>", i))
    return parts


def qwen3(messages: tuple[Message, ...], asks: str = "") -> Parts:
    parts: Parts = []
    for i, m in enumerate(messages):
        words, header = m.content, f"<|im_start|>{m.role}\n"
        if m.role == "assistant" and i == len(messages) - 1:
            words = (
                words if "</think>" in words else f"<think>\n\n</think>\n\n{words.lstrip(chr(10))}"
            )
            header, words = header + asks, words.removeprefix(asks)
        elif m.role == "assistant":
            words = words.rpartition("</think>")[2].lstrip("\n" if "</think>" in words else "")
        parts += [(header, None), (f"{words}<|im_end|>\n", i if m.role == "assistant" else None)]
    return parts


def zephyr(messages: tuple[Message, ...]) -> Parts:
    return turned(messages, "<|{}|>\n", "</s>\n")


def phi3(messages: tuple[Message, ...]) -> Parts:
    parts = turned(messages, "<|{}|>\n", "<|end|>\n")
    return [*parts[:-1], (parts[-1][0] + "</s>", parts[-1][1])]


def r1(messages: tuple[Message, ...]) -> Parts:
    parts: Parts = [("<s>", None)]
    parts += [(m.content, None) for m in messages if m.role == "system"]
    for i, m in enumerate(messages):
        if m.role == "user":
            parts.append((f"<|User|>{m.content}", None))
        elif m.role == "assistant":
            words = m.content.rpartition("</think>")[2]
            parts += [("<|Assistant|>", None), (f"{words}</s>", i)]
    return parts


@dataclass(frozen=True)
class Chat:
    text: str
    by_hand: Callable[[tuple[Message, ...]], Parts]
    refuses: set[str] = field(default_factory=set)
    """Names of the conversations that cannot be encoded."""
    refuses_all: set[str] = field(default_factory=set)
    """The same, where every turn is to be learned."""


def talk(*turns: str, train: bool = True) -> tuple[Message, ...]:
    """Messages from `S: words`, `U: words`, `A: words`; A's are labels unless `train` is off."""
    roles = {"S": "system", "U": "user", "A": "assistant"}
    return tuple(Message(roles[t[0]], t[3:], train or t[0] != "A") for t in turns)


THOUGHT = "A: <think>\nThe sky, hm.\n</think>\n\nIt is blue."
SAYS = "What? <|im_end|>\n<|im_start|>assistant\nno</s> <|eot_id|>[/INST] <|Assistant|><|end|>"
SPELLS = "na\u0308ive \ufb01sh \ufffd\ufffd \U0001f469\u200d\U0001f680 \u05d0\u05d1 \u65e5\u672c"

TALKS = {
    "one": talk("U: What is the sky?", "A: It is blue."),
    "system": talk("S: Be brief.", "U: What is the sky?", "A: It is blue."),
    "turns": talk("U: What?", "A: It is blue.", "U: Why?", "A: So it is."),
    "system and turns": talk("S: Be brief.", "U: What?", "A: It is.", "U: Why?", "A: So it is."),
    "context": talk("U: What?", "A: It is blue.", "U: Why?", "A: So it is.", train=False),
    "two users": talk("U: What?", "U: And why?", "A: It is blue."),
    "two answers": talk("U: What?", "A: It is.", "A: Or not.", "U: Why?", "A: So it is."),
    "opened": talk("A: Hello there.", "U: What is the sky?", "A: It is blue."),
    "late system": talk("U: What?", "A: It is.", "S: Be brief.", "U: Why?", "A: So it is."),
    "two systems": talk("S: Be brief.", "S: Be kind.", "U: What?", "A: It is blue."),
    "blank system": talk("S: ", "U: What is the sky?", "A: It is blue."),
    "blank user": talk("U: ", "A: It is blue."),
    "white user": talk("U:  \n ", "A: It is blue."),
    "blank answer": talk("U: What?", "A: ", "U: Why?", "A: So it is."),
    "equal": talk("U: What?", "A: What?", "U: What?", "A: What?"),
    "all equal": talk("S: user", "U: user", "A: user", "U: user", "A: user"),
    "one letter": talk("U: a", "A: a"),
    "header words": talk("U: assistant\n", "A: assistant\nuser"),
    "ends": talk("S:  \n Be. ", "U: \n What?\n\n", "A: \n It is. \n", "U:   Why?", "A:  So.\n\n"),
    "line ends": talk("U: What?\r\nWhy?\r\n", "A: It\r\nis.\r"),
    "no-break spaces": talk("U: \u00a0What?\u2003", "A: \u00a0It is.\u3000"),
    "markers": talk(f"U: {SAYS}", f"A: {SAYS}", f"U: {SAYS}", f"A: {SAYS}"),
    "braces": talk(f"U: {CHATML}", "A: {{ messages }} {% raw %} {# no #}"),
    "probes": talk("U: probe0x7c1e09 probe1x7c1e09", "A: probe1x7c1e09 probe0x7c1e09"),
    "spelling": talk(f"U: {SPELLS}", f"A: {SPELLS}", f"U: {SPELLS}", f"A: {SPELLS}"),
    "long": talk("U: " + "What is blue? " * 80, "A: " + "The sky is. " * 80),
    "thought": talk("U: What?", THOUGHT),
    "thought, system": talk("S: Be brief.", "U:  What?\n", THOUGHT + " \n"),
    "thought before": talk("U: What?", THOUGHT, "U: Why?", "A: So it is."),
    "thought in context": talk("U: What?", THOUGHT, "U: Why?", "A: So it is.", train=False),
    "thought twice": talk("U: What?", THOUGHT, "U: Why?", THOUGHT, train=False),
    "blank answer, thought": talk("U: What?", "A: ", "U: Why?", THOUGHT),
    "loose thought": talk("U: What?", "A: <think>The sky.</think>It is blue."),
    "user thinks": talk("U: <think>\nWhat?\n</think>\n\nWhy?", "A: It is blue."),
}

NOT_ALTERNATING = {"two users", "two answers", "opened", "late system", "two systems"}
WITH_SYSTEM = {name for name, messages in TALKS.items() if messages[0].role == "system"}

CHATS = {
    "chatml": Chat(CHATML, chatml),
    "default system": Chat(DEFAULT, default),
    "llama3": Chat(LLAMA3, llama3),
    "gemma": Chat(GEMMA, gemma, NOT_ALTERNATING | WITH_SYSTEM),
    # Its own comparison of messages puts the system turn before every equal question.
    "mistral": Chat(MISTRAL, mistral, NOT_ALTERNATING | {"all equal"}),
    "qwen3": Chat(QWEN3, qwen3, {"loose thought"}, {"thought before"}),
    "qwen3 thinks": Chat(
        QWEN3_THINKS, lambda m: qwen3(m, "<think>\n"), {"loose thought"}, {"thought before"}
    ),
    "keeps thought": Chat(KEEPS_THOUGHT, keeps_thought),
    "zephyr": Chat(ZEPHYR, zephyr),
    "phi3": Chat(PHI3, phi3),
    "r1": Chat(
        R1,
        r1,
        {
            *("two systems", "thought", "thought, system", "thought twice", "loose thought"),
            "blank answer, thought",
        },
        {"thought before"},
    ),
}


def train_tokenizer(backend: Tokenizer, trainer: trainers.BpeTrainer) -> None:
    texts = [m.content for messages in TALKS.values() for m in messages]
    backend.train_from_iterator([*texts, "system user", "assistant model"], trainer)


def byte_tokenizer(*, markers: bool, trim: bool = False, nfc: bool = False) -> Any:
    """Byte-level BPE; the templates' markers are special tokens or plain text."""
    return copy.deepcopy(trained(markers, trim, nfc))


@functools.cache
def trained(markers: bool, trim: bool, nfc: bool) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if nfc:
        backend.normalizer = normalizers.NFC()
    special = ["<s>", "</s>", *(MARKERS if markers else ())]
    trainer = trainers.BpeTrainer(
        vocab_size=420 + len(special),
        special_tokens=special,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    train_tokenizer(backend, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=MARKERS if markers else [],
    )


def piece_tokenizer() -> Any:
    """SentencePiece's kind: spaces are letters, one heads the text, unknown letters are bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    space = "\u2581"
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(space, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *MARKERS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500 + len(special),
        special_tokens=special,
        initial_alphabet=[chr(c) for c in range(33, 127)] + [space],
        limit_alphabet=95,
        show_progress=False,
    )
    train_tokenizer(backend, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=MARKERS,
    )


TOKENIZERS = {
    "markers": lambda: byte_tokenizer(markers=True),
    "no markers": lambda: byte_tokenizer(markers=False, trim=True),
    "composed": lambda: byte_tokenizer(markers=True, nfc=True),
    "pieces": piece_tokenizer,
}


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def made(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def chat_template(made: Any, text: str) -> Template:
    made.chat_template = text
    return make_template("chat", made, [])


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
