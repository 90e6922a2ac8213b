"""Rows and token ids, held against TRL's own preparation and against a tokenizer's bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from trl.trainer.sft_trainer import SFTTrainer

from nacd.data import RAW_TEMPLATES, Example, Message, Template, encode_all, make_template
from nacd.errors import UserError

CORPUS = [
    "Question: What is the capital of France?\nAnswer: Paris",
    "### Instruction:\nWhat colour is the sky?\n\n### Response:\nThe sky is blue.",
    "user assistant system What? What?\n Why?\n\n probe",
] * 4

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama-2's kind: BOS in the template, contents stripped, the system turn inside the first user's.
INST = (
    "{% set system = '' %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set system = m['content'] %}"
    "{% elif m['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}"
    "<<SYS>>{{ messages[0]['content'] }}<</SYS>> {% endif %}"
    "{{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
# Qwen3's kind: the last assistant turn gets an empty reasoning block, earlier ones do not.
THINK = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    + CHATML
)


def tokenizer(
    chat: str | None = None, *, bos: bool = False, trim: bool = False, eos: bool = True
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    names: dict[str, Any] = {"bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    special = ["<|im_start|>", "<|im_end|>"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=special, **names
    )
    made.chat_template = chat
    return made


def example(*turns: tuple[str, str]) -> Example:
    return Example(tuple(Message(role, text) for role, text in turns), "mine.jsonl:7")


def pair(prompt: str, response: str = "Paris") -> Example:
    return example(("user", prompt), ("assistant", response))


PAIRS = [
    pair("What is the capital of France?"),
    pair("  Why?\n", " Blue. "),
    pair("What?\n\nWhat?", "What?"),
    pair("Is it naïve, 日本 or 🦊?", "🦊 日本"),
    pair("{response} or {prompt}?", "{prompt}"),
    pair("stop </s> here", "no </s>"),
    pair("", "nothing asked"),
]
WITH_SYSTEM = example(("system", "What?"), ("user", "What?"), ("assistant", "What?"))
LONG = example(
    ("system", "What?"),
    ("user", "What?"),
    ("assistant", "The sky is blue."),
    ("user", "What?"),
    ("assistant", "The sky is blue."),
)


def prepared_by_trl(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> list[tuple[list[int], list[int]]]:
    """Ids and labels that SFTTrainer prepares of rows, by its own method."""
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=True)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=False,
        max_length=None,
        shuffle_dataset=False,
    )
    made: Any = SFTTrainer._prepare_dataset(
        trainer,  # pyright: ignore[reportArgumentType]
        datasets.Dataset.from_list(rows),
        tokenizer,
        args,  # pyright: ignore[reportArgumentType]
        packing=False,
        formatting_func=None,
        dataset_name="train",
    )
    return list(zip(made["input_ids"], made["labels"], strict=True))


def encoded_by_us(
    template: Template, examples: list[Example], turns: Literal["all", "last"] = "last"
) -> list[tuple[list[int], list[int]]]:
    rows = [template.encode(example, turns) for example in examples]
    return [
        (list(r.ids), [i if on else -100 for i, on in zip(r.ids, r.response, strict=True)])
        for r in rows
    ]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", [*RAW_TEMPLATES, "{prompt}{response}", "Q {prompt}  {response}\n"])
def test_raw_rows_are_what_sft_trainer_makes_of_them(name: str, bos: bool):
    made = tokenizer(bos=bos)
    template = make_template(name, made, PAIRS)
    examples = [*PAIRS, WITH_SYSTEM]
    rows = [template.row(example) for example in examples]
    ours = encoded_by_us(template, examples)
    assert ours == prepared_by_trl(made, rows)
    assert all((ids[0] == made.bos_token_id) == bos for ids, _ in ours)
    assert all(ids[-1] == made.eos_token_id for ids, _ in ours)
    if not name.endswith("\n"):  # a response that ends itself gets no second end
        assert all(labels.count(ids[-1]) == 1 for ids, labels in ours)


@pytest.mark.parametrize("chat", [CHATML, INST, THINK])
@pytest.mark.parametrize("bos", [False, True])
def test_chat_rows_are_what_sft_trainer_makes_of_them(chat: str, bos: bool):
    made = tokenizer(chat, bos=bos)
    template = make_template("chat", made, PAIRS)
    examples = [*PAIRS, WITH_SYSTEM, LONG]
    rows = [template.row(example) for example in examples]
    assert encoded_by_us(template, examples) == prepared_by_trl(made, rows)
    single = [*PAIRS, WITH_SYSTEM]
    assert encoded_by_us(template, single, "all") == encoded_by_us(template, single, "last")


@pytest.mark.parametrize(
    ("name", "prompt", "completion"),
    [
        ("qa", "Question: Why?\nAnswer:", " So."),
        ("alpaca", "### Instruction:\nWhy?\n\n### Response:\n", "So."),
        ("plain", "Why?\n", "So."),
        ("{prompt}{response}", "Why?", "So."),
        (r"Q: {prompt}\nA:  {response}\n", "Q: Why?\nA:", "  So.\n"),
    ],
)
def test_raw_rows_part_before_the_space(name: str, prompt: str, completion: str):
    row = make_template(name, tokenizer(), []).row(pair("Why?", "So."))
    assert row == {"prompt": prompt, "completion": completion}


def test_chat_rows_are_lists_of_messages():
    row = make_template("chat", tokenizer(CHATML), []).row(LONG)
    assert row["completion"] == [{"role": "assistant", "content": "The sky is blue."}]
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]


def learnable(template: Template, example: Example) -> str:
    row = template.encode(example)
    return str(template.tokenizer.decode(list(row.ids[slice(*row.prompt)])))


def spans_by_bytes(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> list[range]:
    """The bytes of the rendered text that each id covers, from the byte alphabet alone."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    letters |= {chr(256 + n): byte for n, byte in enumerate(hidden)}
    spans, end = [], 0
    for token, text in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        start, end = end, end + len(text)  # special tokens are ASCII here
        assert token in tokenizer.all_special_ids or all(letter in letters for letter in text)
        spans.append(range(start, end))
    return spans


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", [*RAW_TEMPLATES, "{prompt}{response}", "chat"])
def test_the_learnable_span_is_all_tokens_wholly_inside_the_prompt(
    name: str, bos: bool, trim: bool
):
    made = tokenizer(CHATML, bos=bos, trim=trim)
    template = make_template(name, made, [])
    for row in [*PAIRS[:5], WITH_SYSTEM]:
        encoded = template.encode(row)
        # Told apart by what surrounds it: the whole text up to the last user turn's content.
        whole = made.decode(list(encoded.ids))
        assert isinstance(whole, str)
        if name == "chat":
            before = whole.rindex("<|im_start|>user\n") + len("<|im_start|>user\n")
        else:
            text = RAW_TEMPLATES.get(name, name).partition("{prompt}")[0]
            system = "What?\n\n" if row is WITH_SYSTEM else ""
            before = len("<s>" * bos + text + system)
        assert whole[before:].startswith(row.prompt)
        start = len(whole[:before].encode())
        stop = start + len(row.prompt.encode())
        inside = [
            i
            for i, span in enumerate(spans_by_bytes(made, encoded.ids))
            if start <= span.start and span.stop <= stop
            if not encoded.response[i]
        ]
        assert inside
        assert encoded.prompt == (inside[0], inside[-1] + 1)


def test_a_token_over_the_border_is_not_learnable():
    template = make_template("qa", tokenizer(trim=True), [])
    assert " What" in template.tokenizer.decode(list(template.encode(PAIRS[0]).ids[:9]))
    assert learnable(template, PAIRS[0]) == " is the capital of France?"
    assert learnable(make_template("plain", tokenizer(trim=True), []), PAIRS[0]) == PAIRS[0].prompt


@pytest.mark.parametrize("chat", [CHATML, INST, THINK])
def test_the_last_user_turn_is_found_among_equal_ones(chat: str):
    template = make_template("chat", tokenizer(chat), [])
    changed = template.replace_prompt(LONG, "Why? Why?")
    one, other = template.encode(LONG), template.encode(changed)
    first_answer = one.response.index(True)
    assert one.prompt[0] > first_answer
    assert one.ids[: one.prompt[0] - 1] == other.ids[: one.prompt[0] - 1]
    tail = len(one) - one.prompt[1]
    assert one.ids[-tail:] == other.ids[-tail:]
    straddles = chat == INST  # " What" and " Why" begin with the template's space
    assert learnable(template, LONG) == ("?" if straddles else "What?")
    assert learnable(template, changed).endswith("? Why?")


def test_a_stripping_template_leaves_the_stripped_words():
    template = make_template("chat", tokenizer(INST), [])
    assert learnable(template, pair("\n What? z \n")) == "? z"  # " What" straddles
    assert learnable(template, pair("   ")) == ""


def test_special_tokens_in_the_prompt_are_never_learnable():
    made = tokenizer(CHATML)
    made.eos_token = "<|im_end|>"  # </s> stays a special token, though without a role
    template = make_template("chat", made, [])
    assert learnable(template, pair("go </s> on from here")) == " on from here"
    assert learnable(template, pair("go <|im_end|> on from here")) == " on from here"


@pytest.mark.parametrize("chat", [CHATML, INST, THINK])
def test_all_assistant_turns_are_labels(chat: str):
    made = tokenizer(chat)
    template = make_template("chat", made, [])
    row = template.encode(LONG)
    pieces = [str(made.decode([i])) for i in row.ids]
    labelled = "".join(p if on else "\0" for p, on in zip(pieces, row.response, strict=True))
    turns = [part for part in labelled.split("\0") if part]
    end = "<|im_end|>\n" if chat != INST else " </s>"
    thought = "<think>\n\n</think>\n\n" if chat == THINK else ""
    lead = " " if chat == INST else ""
    said = f"{lead}The sky is blue.{end}"
    assert turns == [said, thought + said]
    assert template.encode(LONG, "last").response_tokens < row.response_tokens


def test_auto():
    choice = Example(PAIRS[0].messages, "a:1", ("Paris", "Rome"), 0)
    assert make_template("auto", tokenizer(CHATML), [choice]).name == "qa"
    assert make_template("auto", tokenizer(CHATML), [choice, PAIRS[0]]).name == "chat"
    assert make_template("auto", tokenizer(), PAIRS).name == "alpaca"


def test_describe_tells_templates_apart():
    assert make_template("qa", tokenizer(), []).describe() == {
        "name": "qa",
        "text": "Question: {prompt}\nAnswer: {response}",
    }
    one, other = (make_template("chat", tokenizer(c), []).describe() for c in (CHATML, INST))
    assert one["name"] == other["name"] == "chat"
    assert one["sha256"] != other["sha256"]


def test_replace_prompt_changes_the_last_user_turn_alone():
    changed = make_template("plain", tokenizer(), []).replace_prompt(LONG, "New?")
    assert changed.prompt == "New?"
    assert changed.messages[:3] == LONG.messages[:3]
    assert changed.response == LONG.response


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chat", "no chat template. Choose --template qa"),
        (
            "chatml",
            "--template 'chatml' is neither auto, chat, qa, alpaca, plain, verbatim nor a text",
        ),
        ("{prompt}", "one {prompt} and, after it, one {response}"),
        ("{response} {prompt}", "one {prompt} and, after it, one {response}"),
        ("{prompt} {response} {response}", "one {prompt} and, after it, one {response}"),
    ],
)
def test_wrong_templates_are_named(name: str, message: str):
    with pytest.raises(UserError) as caught:
        make_template(name, tokenizer(), [])
    assert message in str(caught.value)


def test_a_raw_template_needs_an_end_and_offsets():
    with pytest.raises(UserError, match="Set eos_token"):
        make_template("qa", tokenizer(eos=False), [])
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(UserError, match="expected a fast one"):
        make_template("qa", slow, [])


def test_rows_that_a_template_cannot_write_are_named():
    with pytest.raises(UserError, match=r"mine\.jsonl:7 has several turns.*--template chat"):
        make_template("qa", tokenizer(CHATML), []).encode(LONG)
    with pytest.raises(UserError, match=r"--template chat, with a --model that has one\.$"):
        make_template("qa", tokenizer(), []).encode(LONG)
    with pytest.raises(UserError, match=r"mine\.jsonl:7.*refuses the row \(no system turn\)"):
        make_template("chat", tokenizer(NO_SYSTEM), []).encode(WITH_SYSTEM)
    upper = CHATML.replace("m['content']", "m['content'] | upper")
    with pytest.raises(UserError, match=r"mine\.jsonl:7.*does not write message 1 \(user\) as it"):
        make_template("chat", tokenizer(upper), []).encode(PAIRS[0])


def test_rows_too_long_are_dropped_and_counted():
    template = make_template("plain", tokenizer(), [])
    short, long = pair("Why?"), pair("Why? " * 50)
    limit = len(template.encode(short))
    rows, kept, dropped = encode_all(template, [long, short], limit)
    assert kept == [short]
    assert rows == [template.encode(short)]
    assert (dropped.count, dropped.too_long, dropped.rows) == (1, 1, 2)
    longest = len(template.encode(long))
    assert dropped.message == (
        f"dropped 1 of 2 rows: 1 longer than --max-tokens {limit} (the longest has {longest})"
    )
    assert encode_all(template, [short], limit)[2].message == ""
    with pytest.raises(UserError, match=r"no row is left \(dropped 2 of 2 rows.*--max-tokens"):
        encode_all(template, [short, long], limit - 1)


def test_rows_without_labels_are_dropped_and_counted():
    endless = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    endless += "{% if add_generation_prompt %}[assistant]{% endif %}"
    template = make_template("chat", tokenizer(endless), [])
    with pytest.raises(UserError, match="1 whose response leaves no token to learn"):
        encode_all(template, [pair("Why?", "")], 512)


def test_a_broken_chat_template_is_named_before_any_row():
    for chat in ("{% for m in messages %}", "{{ messages | nonsense }}"):
        for name in ("chat", "auto"):
            with pytest.raises(
                UserError, match=r"not valid Jinja \(line 1: .*another --model"
            ) as e:
                make_template(name, tokenizer(chat), [])
            assert "mine.jsonl" not in str(e.value)


def test_of_several_chat_templates_the_default_is_taken():
    made: Any = tokenizer()
    made.chat_template = {"tool_use": "{{ messages }}", "default": CHATML}
    template = make_template("auto", made, [])
    assert template.describe() == make_template("chat", tokenizer(CHATML), []).describe()
    assert template.encode(LONG) == make_template("chat", tokenizer(CHATML), []).encode(LONG)
    made.chat_template = {"tool_use": "{{ messages }}", "rag": CHATML}
    with pytest.raises(UserError, match=r"several chat templates \(rag, tool_use\), and none is"):
        make_template("auto", made, [])


def test_a_chat_template_may_write_the_date_or_want_more_than_one_message():
    dated = "{{ strftime_now('%d %b %Y') }}{{ raise_exception('short') if messages | count < 2 }}"
    template = make_template("chat", tokenizer(dated + CHATML), [])
    plain = make_template("chat", tokenizer(CHATML), []).encode(LONG)
    assert template.encode(LONG).response_tokens == plain.response_tokens


def test_a_tokenizer_with_a_way_of_its_own_is_named():
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *given: Any, **options: Any) -> Any:
            return super().apply_chat_template(*given, **options)

    made = Own(tokenizer_object=tokenizer().backend_tokenizer, eos_token="</s>")
    made.chat_template = CHATML
    with pytest.raises(UserError, match=r"\(Own\) writes chats in a way of its own"):
        make_template("chat", made, [])
