"""Conversations, chat templates, what each writes by hand, and tokenizers: for tests of labels.

The templates are of the structure of public ones, in the shortest words that show it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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

from nacd.data import Message, Template, make_template

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


def chat_template(made: Any, text: str) -> Template:
    made.chat_template = text
    return make_template("chat", made, [])
