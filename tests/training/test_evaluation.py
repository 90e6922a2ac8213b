from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nacd.commands.target import EvaluateConfig, evaluate
from nacd.config import ReadConfig
from nacd.data import Example, Message, collate, encode_all, make_template, read_examples
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.training import evaluation
from nacd.training.evaluation import choice_accuracy, response_nll, task_accuracy

ARC = [
    ("What do plants need?", ["sunlight", "a long walk", "salt", "wool"], 0),
    ("Which is a planet?", ["the sun", "Mars", "a comet"], 1),
    ("What is frozen water?", ["steam", "fog", "ice"], 2),
    ("Which of these is alive?", ["a rock", "a tree", "a cloud", "sand"], 1),
    ("What falls from clouds?", ["rain", "coal"], 0),
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [
        {
            "question": q,
            "choices": {"text": c, "label": list("ABCD"[: len(c)])},
            "answerKey": "ABCD"[a],
        }
        for q, c, a in ARC
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(folder: Path) -> tuple[LoraModel, torch.Tensor]:
    model = load_model(ModelConfig(model=str(folder), dtype="float64", device="cpu"))
    generator = torch.Generator().manual_seed(2)
    theta = model.fresh_theta(0)
    return model, theta + 0.1 * torch.randn(model.size, generator=generator).to(theta)


def log_likelihood(model: LoraModel, prefix: list[int], whole: list[int]) -> float:
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([whole])).logits[0]
    log = torch.log_softmax(logits.double(), -1)
    return sum(float(log[i - 1, whole[i]]) for i in range(len(prefix), len(whole)))


@pytest.mark.parametrize(
    ("arch", "name", "form"),
    [
        ("llama", "qa", "cloze"),
        ("opt", "qa", "letter"),
        ("llama", "chat", "letter"),
        ("llama", "chat with an empty thought", "letter"),
    ],
)
def test_accuracy_equals_a_hand_computation(
    arch: str, name: str, form: Any, tiny_folder: Any, questions: Path
) -> None:
    model, theta = load(tiny_folder(arch))
    examples = read_examples(questions, choice_form=form)
    thought = ""
    if name == "chat with an empty thought":  # which the model is trained to write, as in TRL
        name, thought = "chat", "<think></think>\n"
        own: Any = model.tokenizer.chat_template
        said = "{{ message['content'] }}"
        block = "{% if message['role'] == 'assistant' %}<think></think>\n{% endif %}"
        model.tokenizer.chat_template = own.replace(said, block + said)
    template = make_template(name, model.tokenizer, examples)
    found = choice_accuracy(model, theta, examples, template=template, task="mine", batch_size=3)

    model.write(theta)
    correct, correct_norm = [], []
    for example in examples:
        assert example.choices is not None
        scores = []
        for choice in example.choices:
            if name == "chat":
                text = model.tokenizer.apply_chat_template(
                    [{"role": "user", "content": example.prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                text += thought
                prefix = model.tokenizer.encode(text.rstrip(), add_special_tokens=False)
                whole = model.tokenizer.encode(text + choice, add_special_tokens=False)
            else:
                text = f"Question: {example.prompt}\nAnswer:"
                prefix = model.tokenizer.encode(text)
                whole = model.tokenizer.encode(f"{text} {choice}")
            scores.append(log_likelihood(model, prefix, whole))
        lengths = [len(choice) for choice in example.choices]
        correct.append(int(np.argmax(scores)) == example.answer)
        correct_norm.append(int(np.argmax(np.divide(scores, lengths))) == example.answer)
    assert found.correct == tuple(correct)
    assert found.acc == pytest.approx(np.mean(correct))
    assert found.acc_norm == pytest.approx(np.mean(correct_norm))
    assert found.acc_stderr == pytest.approx(np.std(correct, ddof=1) / np.sqrt(len(correct)))
    assert (found.task, found.n, found.shots) == ("mine", 5, 0)
    assert found.template["name"] == name


def test_choices_that_are_all_dates_are_texts(tiny_folder: Any) -> None:
    model, theta = load(tiny_folder("llama"))
    dates = ("1914-07-28", "1939-09-01")
    examples = [
        Example((Message("user", when), Message("assistant", dates[0])), when, dates, 0)
        for when in ("When?", "And when?")
    ]
    template = make_template("qa", model.tokenizer, examples)
    found = choice_accuracy(model, theta, examples, template=template)
    model.write(theta)
    for example, correct in zip(examples, found.correct, strict=True):
        text = f"Question: {example.prompt}\nAnswer:"
        encode = model.tokenizer.encode
        scores = [log_likelihood(model, encode(text), encode(f"{text} {date}")) for date in dates]
        assert correct == (scores[0] > scores[1])


@pytest.mark.parametrize("arch", ["gpt2", "gemma3"])
def test_response_nll_equals_a_hand_computation(arch: str, tiny_folder: Any) -> None:
    model, theta = load(tiny_folder(arch))
    examples = [
        Example((Message("user", q), Message("assistant", c[a])), f"{i}")
        for i, (q, c, a) in enumerate(ARC)
    ]
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples), examples, 256)
    found = response_nll(model, theta, rows, batch_size=2)
    model.write(theta)
    whole, count = 0.0, 0
    for i, row in enumerate(rows):
        start = row.response.index(True)
        expected = -log_likelihood(model, list(row.ids[:start]), list(row.ids))
        assert found.nll[i] == pytest.approx(expected, rel=1e-5)
        assert found.tokens[i] == len(row) - start
        whole, count = whole + expected, count + len(row) - start
    assert found.mean == pytest.approx(whole / count, rel=1e-5), "a token's, not a row's mean"


def test_mistakes_are_named(tiny_folder: Any) -> None:
    model, theta = load(tiny_folder("llama"))
    plain = [Example((Message("user", "Hi"), Message("assistant", "Hello")), "mine.jsonl:1")]
    template = make_template("qa", model.tokenizer, plain)
    with pytest.raises(UserError, match=r"mine\.jsonl:1: not a multiple-choice row"):
        choice_accuracy(model, theta, plain, template=template)
    long = Example(plain[0].messages, "mine.jsonl:2", ("a " * 300, "b"), 0)
    with pytest.raises(UserError, match=r"mine\.jsonl:2: the question and its") as raised:
        choice_accuracy(model, theta, [long], template=template)
    shorter = re.search(r"--max-tokens (\d+) leaves the row out", str(raised.value))
    assert shorter is not None
    _, kept, _ = encode_all(template, [long, plain[0]], int(shorter[1]) + 1)
    assert kept == [long, plain[0]]
    short = replace(plain[0], messages=(Message("user", "Hi"), Message("assistant", "")))
    _, kept, _ = encode_all(template, [long, short], int(shorter[1]))
    assert kept == [short], "the advice does what it says"
    with pytest.raises(UserError, match=r"no rows to evaluate on: give --data"):
        response_nll(model, theta, [])
    with pytest.raises(UserError, match=r"no questions .*: give --data a file of multiple-choice"):
        choice_accuracy(model, theta, [], template=template)


def test_evaluation_leaves_the_model_as_it_was(tiny_folder: Any, questions: Path) -> None:
    model, theta = load(tiny_folder("qwen3"))
    examples = read_examples(questions)
    template = make_template("qa", model.tokenizer, examples)
    rows, _, _ = encode_all(template, examples, 256)
    batch = collate(rows, model.tokenizer.pad_token_id)
    before = model.value_and_grad(theta, batch)
    model.hf.train()
    choice_accuracy(model, theta, examples, template=template)
    assert model.hf.training
    after = model.value_and_grad(theta, batch)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_it_asks_no_other_program_and_draws_no_bars(
    tiny_folder: Any,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def asked(*args: Any, **_: Any) -> None:
        raise AssertionError(f"started {args}")

    monkeypatch.setattr("subprocess.Popen", asked)  # git's complaints would reach the terminal
    model = load_model(ModelConfig(str(tiny_folder("llama"))))
    examples = read_examples(str(questions))
    template = make_template("qa", model.tokenizer, examples)
    capsys.readouterr()
    for bars in (False, True):  # a pipe wants none, whoever asks
        found = choice_accuracy(model, model.zero_theta(), examples, template=template, bars=bars)
        assert found.n
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    # `datasets` draws its own, which the command line turns off
    assert [line for line in lines if line and not line.startswith("Generating")] == []


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (ConnectionError("no route"), "without it, give --data a file of multiple-choice"),
        (ValueError("too many shots"), "too many shots). Choose other tasks, or another --shots."),
    ],
)
def test_what_lm_eval_refuses_is_mended_by_its_kind(
    error: Exception, mend: str, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(evaluation, "_simple_evaluate", refuses)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: SimpleNamespace(all_tasks=["mine"]))
    model, theta = load(tiny_folder("llama"))
    template = make_template("qa", model.tokenizer, [])
    with pytest.raises(UserError, match=re.escape(mend)):
        task_accuracy(model, theta, ["mine"], template=template)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvaluateConfig(), "give --data (a file of held-out rows), --tasks (names), or both."),
        (
            EvaluateConfig(data=ReadConfig("a.jsonl"), shots=2),
            "--shots 2: is for --tasks, and none",
        ),
        (EvaluateConfig(tasks=("arc_easy",), shots=-1), "--shots -1: must be at least 0."),
    ],
)
def test_flags_that_do_not_go_together(config: EvaluateConfig, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(config)


@pytest.mark.slow
def test_an_unknown_task_is_named(tiny_folder: Any) -> None:
    model, theta = load(tiny_folder("llama"))
    template = make_template("qa", model.tokenizer, [])
    with pytest.raises(UserError, match=r"--tasks no_such_task_at_all: no task .* are for --data"):
        task_accuracy(model, theta, ["no_such_task_at_all"], template=template)
    with pytest.raises(UserError, match="without it, give --data a file"):  # the tests are offline
        task_accuracy(model, theta, ["arc_easy"], template=template)
