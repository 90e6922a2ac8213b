"""Soft labels: from a teacher to a file, and from the file into a student's loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch.nn import functional as F

from nacd.cli import main
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, encode_all, make_template
from nacd.data.batches import SoftTargets
from nacd.data.example import Encoded
from nacd.data.rows import Rows
from nacd.data.soft_labels import SoftLabels, read_soft_labels
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.soft_loss import soft_nll
from nacd.model.teacher import expectations
from nacd.training.finetune import fit
from nacd.training.student import train_student

Folder = Callable[[str], Path]
EXAMPLES = [
    Example((Message("user", q), Message("assistant", a)), f"test:{i}")
    for i, (q, a) in enumerate(
        [
            ("What does a plant need?", "sunlight and water"),
            ("Which animal lays eggs?", "a hen"),
            ("Name a planet.", "Mercury, or any other of the eight"),
        ]
    )
]


def model_and_rows(folder: Path) -> tuple[LoraModel, list[Encoded]]:
    model = load_model(ModelConfig(str(folder), device="cpu", lora_rank=2))
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, EXAMPLES), EXAMPLES, 64)
    return model, [*rows]


def trained(model: LoraModel) -> torch.Tensor:
    return model.fresh_theta(0) + 0.05 * torch.sin(torch.arange(model.size).to(torch.float32))


def test_the_loss_is_a_dense_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 11, dtype=torch.float64), torch.randint(11, (5,))
    teacher = torch.randn(5, 11).softmax(-1)
    shares, tokens = teacher.sort(descending=True)
    for weight in (0.0, 0.3, 1.0):
        dense = weight * teacher + (1 - weight) * F.one_hot(labels, 11)
        expected = F.cross_entropy(logits, dense.double(), reduction="none")
        found = soft_nll(logits, labels, SoftTargets(tokens, shares.double(), weight))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("arch", ["llama", "opt"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    arch: str, prompts: bool, tiny_folder: Folder
) -> None:
    """The loss has its minimum there: of another place's or row's labels it would not."""
    model, rows = model_and_rows(tiny_folder(arch))
    theta = trained(model)
    model.write(theta)
    whole = expectations(model, rows, model.vocabulary)
    soft = SoftLabels([r.ids for r in rows], whole, prompts=prompts)
    recipe = Recipe(optimizer="sgd", learning_rate=1.0, batch_size=3, steps=1, clip=0.0, warmup=0.0)
    still = fit(model, rows, recipe, theta=theta, soft=soft)
    assert float((still.theta - theta).norm()) < 1e-5 * float(theta.norm())
    moved = fit(model, rows, recipe, theta=theta)
    assert float((moved.theta - theta).norm()) > 1e-3 * float(theta.norm())
    model.write(theta)  # the loss it reports is the entropy of what the teacher expects
    entropies = []
    for row in rows:  # after each token, what comes next; of a response's alone without prompts
        logs = model.hf(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1).detach()
        entropy = -(logs.exp() * logs).sum(1)[:-1]
        entropies.append(entropy if prompts else entropy[torch.tensor(row.response[1:])])
    assert still.losses[0] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-4)


def test_a_student_comes_nearer_to_its_teacher(tiny_folder: Folder) -> None:
    model, rows = model_and_rows(tiny_folder("llama"))
    model.write(trained(model))
    soft = SoftLabels([r.ids for r in rows], expectations(model, rows, 8), prompts=False)
    recipe = Recipe(learning_rate=1e-2, batch_size=2, epochs=4)
    found = fit(model, rows, recipe, soft=soft)
    assert found.losses[-1] < found.losses[0]
    half = fit(model, rows, recipe, soft=soft, weight=0.5)
    hard = fit(model, rows, recipe, soft=soft, weight=0.0)
    plain = fit(model, rows, recipe)
    assert hard.losses == pytest.approx(plain.losses, rel=1e-5)
    assert half.losses[0] == pytest.approx((found.losses[0] + plain.losses[0]) / 2, rel=1e-5)


def written(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"instruction": e.prompt, "output": e.response} for e in EXAMPLES]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_from_the_command_to_the_command(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path)
    flags = ["--model", str(tiny_folder("qwen3")), "--data", str(data), "--device", "cpu"]
    out = tmp_path / "labels"
    assert main(["label", *flags, "--top", "4", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3
    assert 0 < found["kept"] < 1
    table = parquet.read_table(out / "soft_labels.parquet").to_pylist()
    assert [turn["role"] for turn in table[0]["messages"]] == ["user", "assistant"]
    for row in table:
        assert {len(row["input_ids"])} == {len(row["logprobs"]), len(row["target_token_ids"])}
        assert {len(place) for place in row["logprobs"]} == {4}
        assert all(np.diff(place).max() <= 0 for place in row["logprobs"]), "the likeliest first"
    train = ["train", *flags, "--lora-rank", "2", "--steps", "2", "--yes"]
    labels = ["--soft-labels", str(out / "soft_labels.parquet")]
    assert main([*train, *labels, "--out", str(tmp_path / "student"), "--json"]) == 0
    soft = json.loads((tmp_path / "student/train.json").read_text())
    assert (soft["soft_labels"], soft["soft_weight"]) == (labels[1], 1.0)
    assert soft["soft_prompts"] is True
    alone = [*train, *labels, "--no-soft-prompts", "--out", str(tmp_path / "alone")]
    assert main(alone) == 0
    found = json.loads((tmp_path / "alone/train.json").read_text())
    assert found["soft_prompts"] is False
    assert found["losses"][0] != pytest.approx(soft["losses"][0], rel=1e-3)
    capsys.readouterr()

    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text() + '{"instruction": "Is it new?", "output": "yes"}\n')
    wrong = [*train, *labels, "--out", str(tmp_path / "wrong")]
    wrong[wrong.index("--data") + 1] = str(other)
    for command, message in (
        (wrong, f"has none for {other}:4"),
        ([*train, *labels, "--soft-weight", "2"], "--soft-weight 2: a share, from 0 to 1."),
        ([*train, "--soft-labels", "none"], "none: no such file; `nacd label` writes one."),
        ([*train, "--soft-labels", str(data)], "no whole file of `nacd label`"),
        (["label", *flags, "--top", "0"], "--top 0: at least 1 token"),
    ):
        assert main(command) == 1
        assert message in " ".join(capsys.readouterr().err.split())


def test_labels_of_another_tokenizer_are_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    flags = ["--model", str(tiny_folder("llama")), "--data", str(written(tmp_path))]
    assert main(["label", *flags, "--device", "cpu", "--out", str(out)]) == 0
    other = load_model(ModelConfig(str(tiny_folder("llama")), device="cpu", lora_rank=2))
    other.tokenizer.add_tokens(["anothertoken"])
    with pytest.raises(UserError, match="of another tokenizer"):
        read_soft_labels(out / "soft_labels.parquet", other.tokenizer)


@pytest.mark.parametrize("prompts", [True, False])
def test_the_inner_loops_own_training_is_the_trainers(prompts: bool, tiny_folder: Folder) -> None:
    """Batches in parts and packed, rows of different lengths, with the labels beside them."""
    model, rows = model_and_rows(tiny_folder("llama"))
    model.write(trained(model))
    soft = SoftLabels([r.ids for r in rows], expectations(model, rows, 8), prompts=prompts)
    recipe = Recipe(learning_rate=1e-2, batch_size=3, epochs=3)
    data = Rows.of(rows, model.tokenizer.pad_token_id, soft)
    assert data.digest() != Rows.of(rows, data.pad_id).digest()
    whole = train_student(model, recipe, data, 0)

    def same(theta: torch.Tensor) -> None:  # steps are of 1e-2
        torch.testing.assert_close(theta, whole, rtol=1e-3, atol=1e-4)

    same(fit(model, rows, recipe, soft=soft).theta)
    model.micro = 20  # a row or two at a time
    same(train_student(model, recipe, data, 0))
    model.packs = False
    same(train_student(model, recipe, data, 0))
