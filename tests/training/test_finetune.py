from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from nacd.config.recipe import Recipe
from nacd.data import Example, Message, collate, encode_all, epoch_order, make_template
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.training.evaluation import response_nll
from nacd.training.finetune import fit, read_losses, train

QUESTIONS = [
    ("What does a plant need to make food?", "sunlight and water"),
    ("Which animal lays eggs?", "a hen"),
    ("What is ice?", "water that is frozen"),
    ("  Why is the sky blue? ", "it scatters light"),
    ("Name the planet that is nearest to the sun.", "Mercury"),
    ("Is 7 prime?", "Yes, it is."),
    ("Ünïcödé — 你好?", "naïve 🙂 answer"),
]


def examples() -> list[Example]:
    return [
        Example((Message("user", q), Message("assistant", a)), f"test:{i}")
        for i, (q, a) in enumerate(QUESTIONS, start=1)
    ]


def conversations() -> list[Example]:
    turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."))
    return [Example((*turns, *e.messages), e.source) for e in examples()]


@pytest.mark.parametrize(
    ("arch", "name", "rows"),
    [
        ("llama", "qa", examples()),
        ("opt", "alpaca", examples()),
        ("gpt2", "plain", examples()),
        ("llama", "chat", examples() + conversations()),
        ("gemma3", "chat", examples() + conversations()),
        ("qwen3", "chat", examples() + conversations()),
    ],
)
def test_rows_equal_a_plain_trainers(
    arch: str, name: str, rows: list[Example], tiny_folder: Any, tmp_path: Path
) -> None:
    """What SFTTrainer makes of the exported rows is what the inner loop trains on."""
    model = load_model(ModelConfig(model=str(tiny_folder(arch)), device="cpu"))
    template = make_template(name, model.tokenizer, rows)
    exported = [template.row(example) for example in rows]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_folder(arch)),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_length=None,
            report_to="none",
            bf16=False,
            use_cpu=True,
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(exported),
        processing_class=model.tokenizer,
    )
    made: Any = trainer.train_dataset
    for example, row in zip(rows, made, strict=True):
        ours = template.encode(example, turns="last")
        assert row["input_ids"] == list(ours.ids), example.source
        assert [label != -100 for label in row["labels"]] == list(ours.response), example.source


RECIPES = {
    "adamw": Recipe(batch_size=3, epochs=3, learning_rate=2e-2, weight_decay=0.1, clip=0.5),
    "cosine": Recipe(batch_size=2, steps=7, learning_rate=1e-2, schedule="cosine", beta2=0.9),
    "constant": Recipe(batch_size=4, epochs=2.5, warmup=0.0, schedule="constant", clip=0.0),
    "sgd": Recipe(optimizer="sgd", batch_size=3, epochs=2, learning_rate=0.3, momentum=0.9),
    "in order": Recipe(batch_size=3, epochs=2, learning_rate=3e-3, shuffle=False),
    "root-eps": Recipe(batch_size=3, epochs=2, learning_rate=2e-2, root_eps=1e-6),
}


class RootAdam:
    """Adam with an epsilon inside the root, written out."""

    def __init__(self, theta: torch.Tensor, recipe: Recipe):
        self.theta, self.recipe, self.count = theta, recipe, 0
        self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        self.param_groups = [{"lr": 0.0}]

    def step(self) -> None:
        r, g = self.recipe, self.theta.grad
        assert g is not None
        self.count += 1
        self.m = r.beta1 * self.m + (1 - r.beta1) * g
        self.v = r.beta2 * self.v + (1 - r.beta2) * g**2
        m, v = self.m / (1 - r.beta1**self.count), self.v / (1 - r.beta2**self.count)
        self.theta.data -= self.param_groups[0]["lr"] * m / ((v + r.root_eps).sqrt() + r.eps)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("arch", ["llama", "opt"])
def test_loss_curve_equals_a_plain_loop(arch: str, name: str, tiny_folder: Any) -> None:
    recipe = RECIPES[name]
    model = load_model(ModelConfig(model=str(tiny_folder(arch)), device="cpu", lora_rank=4))
    template = make_template("qa", model.tokenizer, examples())
    rows, _, _ = encode_all(template, examples(), 256)

    theta = model.fresh_theta(5).requires_grad_()
    if recipe.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD([theta], lr=1.0, momentum=recipe.momentum)
    elif recipe.root_eps:
        optimizer = RootAdam(theta, recipe)
    else:
        optimizer = torch.optim.AdamW(
            [theta],
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
        )
    total = recipe.total_steps(len(rows))
    per_epoch = math.ceil(len(rows) / recipe.batch_size)
    expected, tokens = [], 0
    for step in range(total):
        shuffled = 5 if recipe.shuffle else None
        order = epoch_order(len(rows), recipe.batch_size, shuffled, step // per_epoch)
        batch = collate([rows[i] for i in order[step % per_epoch]], model.tokenizer.pad_token_id)
        loss, theta.grad, _ = model.value_and_grad(theta.detach(), batch)
        expected.append(float(loss))
        tokens += batch.tokens
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_([theta], recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.rate(step, total)
        optimizer.step()

    seen: list[int] = []
    result = fit(
        model, rows, recipe, seed=5, progress=lambda done, _total, _loss: seen.append(done)
    )
    assert seen == list(range(1, total + 1))
    assert result.tokens == tokens
    assert result.losses == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(result.theta, theta.detach(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("arch", ["gemma3", "opt"])
def test_a_step_in_parts_is_the_step_in_one(arch: str, tiny_folder: Any) -> None:
    """Parts are packed where the architecture allows it; losses and theta are the same."""
    model = load_model(ModelConfig(str(tiny_folder(arch)), "float64", device="cpu", lora_rank=4))
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples()), examples(), 256)
    longest, whole = max(len(row) for row in rows), sum(len(row) for row in rows)
    results, shapes = [], []
    model.hf.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append((args[0] if args else kwargs["input_ids"]).shape),
        with_kwargs=True,
    )
    for packs, micro in ((False, 10_000), (model.packs, 10_000), (model.packs, 60)):
        model.packs, model.micro = packs, micro
        shapes.clear()
        results.append(fit(model, rows, Recipe(batch_size=4, epochs=2, learning_rate=1e-2)))
        assert (sum(s.numel() for s in shapes) == 2 * whole) == packs
        assert (len(shapes) == 4) == (micro > 60)
        assert all(s.numel() <= max(micro, longest) for s in shapes)
    for other in results[1:]:
        assert other.losses == pytest.approx(results[0].losses, abs=1e-5)
        torch.testing.assert_close(other.theta, results[0].theta, atol=1e-5, rtol=0)


def test_training_goes_on_in_smaller_parts_where_memory_runs_out(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelConfig(str(tiny_folder("llama")), "float64", device="cpu"))
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples()), examples(), 256)
    recipe = Recipe(batch_size=4, epochs=2, learning_rate=1e-2)
    expected = fit(model, rows, recipe)
    lay_out, passes, told = LoraModel.lay_out, [], []

    def scarce(self: LoraModel, batch: Any) -> Any:
        passes.append(batch.tokens)
        if len(passes) % 2 == 0 and batch.tokens > 60:  # after a part that fits
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lay_out(self, batch)

    monkeypatch.setattr(LoraModel, "lay_out", scarce)
    model.micro, model.on_less = 90, told.append
    found = fit(model, rows, recipe)
    assert told, "memory ran out"
    assert told[-1] == model.micro < 90
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    torch.testing.assert_close(found.theta, expected.theta, atol=1e-6, rtol=0)


def test_training_leaves_the_model_usable(tiny_folder: Any) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder("gemma3")), device="cpu"))
    template = make_template("qa", model.tokenizer, examples())
    rows, _, _ = encode_all(template, examples(), 256)
    batch = collate(rows, model.tokenizer.pad_token_id)
    theta = model.fresh_theta(1)
    before = model.value_and_grad(theta, batch)
    first = fit(model, rows, Recipe(batch_size=4, epochs=1), seed=3)
    again = model.value_and_grad(theta, batch)
    assert torch.equal(before[0], again[0])
    assert torch.equal(before[1], again[1])
    second = fit(model, rows, Recipe(batch_size=4, epochs=1), seed=3)
    assert torch.equal(first.theta, second.theta)


def test_checkpointing_trains_the_same(tiny_folder: Any) -> None:
    config = ModelConfig(model=str(tiny_folder("qwen3")), device="cpu", dtype="float64")
    results = []
    for checkpointing in (False, True):
        model = load_model(replace(config, gradient_checkpointing=checkpointing))
        rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples()), examples(), 256)
        results.append(fit(model, rows, Recipe(batch_size=4, epochs=2), seed=3))
        assert model.hf.training == checkpointing
    assert results[1].losses == pytest.approx(results[0].losses, abs=1e-5)
    torch.testing.assert_close(results[1].theta, results[0].theta)


def test_train_saves_an_adapter_that_peft_loads(tiny_folder: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = tiny_folder("llama")
    result = train(
        ModelConfig(model=str(folder), device="cpu"),
        examples(),
        Recipe(batch_size=4, epochs=2, learning_rate=1e-2),
        template="chat",
        out=tmp_path,
        max_tokens=45,
        turns="last",
    )
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["dropped"] == 7 - record["rows"] > 0
    assert result.notes[0].startswith(f"dropped {record['dropped']} of 7 rows")
    assert record["template"]["name"] == "chat"
    assert read_losses(tmp_path) == result.losses
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "train.json"]

    model = load_model(ModelConfig(model=str(folder), device="cpu"))
    row = make_template("chat", model.tokenizer, examples()).encode(examples()[1])
    ids = torch.tensor([row.ids])
    model.write(result.theta)
    assert result.adapter is not None
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, str(result.adapter))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.hf(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "gemma3", "qwen3", "mixtral"])
def test_plain_peft_reports_the_nll_of_what_train_saved(
    arch: str, dtype: Any, tiny_folder: Any, tmp_path: Path
) -> None:
    """The adapter from its folder, the base model from its own, and nothing of ours between."""
    from peft import PeftModel

    folder = tiny_folder(arch)
    config = ModelConfig(str(folder), dtype, device="cpu", lora_rank=2)
    recipe = Recipe(batch_size=4, epochs=2, learning_rate=1e-2)
    result = train(config, examples(), recipe, template="qa", out=tmp_path)
    assert result.adapter is not None
    model = load_model(config)
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples()), examples(), 256)
    found = response_nll(model, result.theta, rows)
    evaluated = load_model(replace(config, lora_rank=8), result.adapter)
    assert response_nll(evaluated, evaluated.zero_theta(), rows).mean == found.mean
    untrained = response_nll(model, model.zero_theta(), rows)
    assert found.mean < untrained.mean - 0.05

    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with warnings.catch_warnings():  # peft does not know that it follows Mixtral's patterns
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys", RuntimeWarning)
        peft = PeftModel.from_pretrained(base, str(result.adapter)).eval()
    for row, expected in zip(rows, found.nll, strict=True):
        with torch.no_grad():
            scores = peft(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
        labels = [i for i, label in enumerate(row.response) if label]
        nll = -sum(float(scores[i - 1, row.ids[i]]) for i in labels)
        assert nll == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 1e-2)


def test_a_16_bit_model_adds_in_float32_here_too(tiny_folder: Any) -> None:
    config = ModelConfig(str(tiny_folder("llama")), "bfloat16", device="cpu", lora_rank=2)
    model = load_model(config)
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples()), examples(), 256)
    recipe = Recipe(batch_size=4, steps=2, learning_rate=1e-3)
    seen: set[torch.dtype] = set()
    model.hf.model.layers[1].register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    found = fit(model, rows, recipe)
    assert seen == {torch.float32}
    wide = fit(load_model(replace(config, dtype="float32")), rows, recipe)
    assert found.losses == pytest.approx(wide.losses, rel=1e-2)


def test_turns_that_are_no_labels_may_lose_their_reasoning(
    tiny_folder: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder("qwen3"), tmp_path / "model")
    written = "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}"
    chat = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + written + "<|im_end|>\n{% endfor %}"
    )
    chat += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    (folder / "chat_template.jinja").write_text(chat)
    turns = [("user", "Why?"), ("assistant", "<think>Hm.</think>So."), ("user", "And?")]
    messages = tuple(Message(role, text) for role, text in [*turns, ("assistant", "Then.")])
    data = [Example(messages, "mine.jsonl:1")]
    config = ModelConfig(model=str(folder), device="cpu")
    recipe = Recipe(batch_size=1, steps=2)
    with pytest.raises(UserError, match=r"mine\.jsonl:1.*leaves out '<think>Hm\.</think>'"):
        train(config, data, recipe, out=tmp_path / "all")
    result = train(config, data, recipe, out=tmp_path / "last", turns="last")
    assert result.notes[0].startswith("in 1 of 1 rows the chat template leaves out the beginning")


def test_divergence_is_named(tiny_folder: Any) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder("llama")), device="cpu"))
    rows, _, _ = encode_all(make_template("qa", model.tokenizer, examples()), examples(), 256)
    recipe = Recipe(optimizer="sgd", batch_size=4, steps=12, learning_rate=1e30, clip=0, warmup=0)
    with pytest.raises(UserError, match="--learning-rate 1e\\+30"):
        fit(model, rows, recipe)
