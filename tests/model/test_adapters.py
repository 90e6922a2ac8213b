"""An adapter's files as they come, against `PeftModel.from_pretrained`; what else reads them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from peft_adapters import (
    RANK,
    TARGETS,
    base,
    edit,
    make,
    nll_by_peft,
    nll_here,
    nll_of,
    plain_lora,
    silent,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nacd.cli import main
from nacd.data import Encoded, Example, Message, make_template
from nacd.errors import UserError
from nacd.experts import read_adapter
from nacd.model import adapters
from nacd.model.lora import ModelConfig, adapter_folder, load_model
from nacd.training.evaluation import choice_accuracy
from tiny import ROWS, tiny_model

Folder = Callable[[str], Path]


# --- files as they come -----------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_folder: Folder, tmp_path: Path) -> Path:
    """A plain adapter of the tiny llama."""
    return make(tiny_folder("llama"), tmp_path / "adapter", target_modules=TARGETS["llama"])


def refused(adapter: Path, folder: Path, match: str) -> None:
    """Both readers refuse the adapter, for the same reason."""
    with pytest.raises(UserError, match=match):
        load_model(ModelConfig(str(folder), "float64", device="cpu"), adapter)
    with pytest.raises(UserError, match=match):
        read_adapter(plain_lora(folder, "llama", "float64"), adapter)


def retensor(adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"use_tomorrow": True}, "use_tomorrow is True, an option of peft that is not known"),
        ({"use_tomorrow": {"a": 1}}, "use_tomorrow"),
    ],
)
def test_an_unknown_option_is_refused(
    value: dict[str, Any], match: str, adapter: Path, tiny_folder: Folder
) -> None:
    edit(adapter, use_yesterday=None, use_today=False)
    load_model(ModelConfig(str(tiny_folder("llama")), device="cpu"), adapter)
    edit(adapter, **value)
    refused(adapter, tiny_folder("llama"), match)


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PREFIX_TUNING"])
def test_other_kinds_of_adapter_are_refused(kind: str, tiny_folder: Folder, tmp_path: Path) -> None:
    config: Any = {
        "IA3": IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        "LOHA": LoHaConfig(target_modules=["v_proj"]),
        "PREFIX_TUNING": PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    }[kind]
    with silent():
        get_peft_model(base(tiny_folder("llama")), config).save_pretrained(tmp_path / "other")
    refused(tmp_path / "other", tiny_folder("llama"), f"peft_type {kind}, but only .* LORA")


def test_a_vocabulary_that_grew_before_training_is_named_and_the_mend_mends(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    for arch in ("llama", "qwen3"):  # a head of its own, and one that is tied
        grown, adapter = tmp_path / arch / "grown", tmp_path / arch / "adapter"
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder(arch))
        tokenizer.add_tokens([f"<plan{i}>" for i in range(10)])
        model = base(tiny_folder(arch))
        model.resize_token_embeddings(ROWS + 2)
        model.save_pretrained(grown)
        tokenizer.save_pretrained(grown)
        with silent(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            peft = get_peft_model(model, LoraConfig(target_modules="all-linear", r=RANK))
            for parameter in peft.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
            peft.save_pretrained(str(adapter))
        assert any("embed_tokens" in key for key in load_file(adapter / adapters.WEIGHTS))

        config = ModelConfig(str(tiny_folder(arch)), "float64", device="cpu")
        match = f"embed_tokens has {ROWS + 2} rows, one a token, and --model .* has {ROWS}"
        with pytest.raises(UserError, match=match):
            load_model(config, adapter)
        own = load_model(dataclasses.replace(config, lora_rank=RANK, lora_alpha=8.0))
        with pytest.raises(UserError, match=match):
            read_adapter(own, adapter)

        mended = load_model(dataclasses.replace(config, model=str(grown)), adapter)
        expected = nll_by_peft(grown, adapter)
        assert nll_here(mended, mended.zero_theta()) == pytest.approx(expected, rel=1e-6)


def test_embeddings_saved_unchanged_in_size_are_applied(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    folder, adapter = tiny_folder("llama"), tmp_path / "adapter"
    with silent():
        peft = get_peft_model(base(folder), LoraConfig(target_modules=TARGETS["llama"], r=RANK))
        for parameter in peft.parameters():
            parameter.data *= 1.1
        peft.save_pretrained(str(adapter), save_embedding_layers=True)
    model = load_model(ModelConfig(str(folder), "float64", device="cpu"), adapter)
    expected = nll_by_peft(folder, adapter)
    assert nll_here(model, model.zero_theta()) == pytest.approx(expected, rel=1e-6)
    own = plain_lora(folder, "llama", "float64")
    with pytest.raises(UserError, match=r"holds base_model.*(embed_tokens|lm_head).* beside LoRA"):
        read_adapter(own, adapter)


@pytest.mark.parametrize(
    ("arch", "match"),
    [
        ("deeper", r"lacks 6 of .*layers\.2.*give that as --model|lacks 6 of .*layers\.2"),
        ("shallower", r"holds 6 (without a place|others)"),
        ("wider", r"is 4 x 32, and 4 x 64|has shape \(4, 32\), but \(4, 64\)"),
    ],
)
def test_an_adapter_of_another_model(arch: str, match: str, adapter: Path, tmp_path: Path) -> None:
    from tiny import tiny_config, tiny_tokenizer

    config = tiny_config("llama")
    if arch == "wider":
        config.hidden_size = 64
        config.head_dim = 16
    else:
        config.num_hidden_layers += 1 if arch == "deeper" else -1
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / arch)
    tiny_tokenizer("llama").save_pretrained(tmp_path / arch)
    refused(adapter, tmp_path / arch, match)
    with pytest.raises(UserError, match=r"names its base model: .*llama"):
        load_model(ModelConfig(str(tmp_path / arch), device="cpu"), adapter)


def test_an_adapter_of_another_architecture(adapter: Path, tiny_folder: Folder) -> None:
    with pytest.raises(UserError, match=r"peft cannot put it on .*names its base model: .*llama"):
        load_model(ModelConfig(str(tiny_folder("gpt2")), device="cpu"), adapter)


@pytest.mark.parametrize(
    ("rename", "match"),
    [
        (lambda key: key.removeprefix("base_model.model."), "base_model.model"),
        (lambda key: f"base_model.model.{key}", "base_model.model"),
        (lambda key: f"module.{key}", "base_model.model"),
        (lambda key: key.replace("lora_A", "lora_C"), "lora_[AC]"),
        (lambda key: key if "layers.1.mlp" not in key else "", "lacks 2 of"),
    ],
)
def test_matrices_of_other_names_are_refused(
    rename: Callable[[str], str], match: str, adapter: Path, tiny_folder: Folder
) -> None:
    retensor(adapter, lambda found: {new: t for key, t in found.items() if (new := rename(key))})
    refused(adapter, tiny_folder("llama"), match)


@pytest.mark.parametrize(
    "change",
    [
        lambda key, t: (key, t.bfloat16()),
        lambda key, t: (key.replace(".weight", ".default.weight"), t),  # a module's own names
    ],
)
def test_an_adapter_that_is_written_otherwise(
    change: Callable[[str, Any], tuple[str, Any]], adapter: Path, tiny_folder: Folder
) -> None:
    folder = tiny_folder("llama")
    retensor(adapter, lambda found: dict(change(key, t) for key, t in found.items()))
    expected = nll_by_peft(folder, adapter)
    model = load_model(ModelConfig(str(folder), "float64", device="cpu"), adapter)
    assert nll_here(model, model.zero_theta()) == pytest.approx(expected, rel=1e-6)
    own = plain_lora(folder, "llama", "float64")
    assert nll_here(own, read_adapter(own, adapter)) == pytest.approx(expected, rel=1e-6)


def test_files_that_are_not_an_adapter(adapter: Path, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    refused(tmp_path / "none", folder, "no such folder")
    refused(folder, folder, "it is a model, not an adapter; give it as --model")
    refused(adapter.parent, folder, f"no adapter_model.safetensors there, but .*{adapter}")
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    refused(adapter, folder, r"adapter_model\.safetensors: damaged")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(adapter, folder, "git lfs pull")
    weights.unlink()
    refused(adapter, folder, r"no adapter_model\.safetensors there")
    weights.write_bytes(whole)
    for text, match in (("{", "damaged"), ("[]", "not a JSON object"), ("{}", "peft_type None")):
        (adapter / "adapter_config.json").write_text(text)
        refused(adapter, folder, match)


def test_a_pickled_adapter_is_refused_and_converted_as_said(
    adapter: Path, tiny_folder: Folder
) -> None:
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    refused(adapter, tiny_folder("llama"), r"pickled \(adapter_model\.bin\)")
    with pytest.raises(UserError) as caught:
        adapters.check(adapter)
    exec(str(caught.value).split('python -c "')[1].rstrip('"'), {})
    load_model(ModelConfig(str(tiny_folder("llama")), device="cpu"), adapter)


# --- what else evaluates ----------------------------------------------------------------------


def test_an_adapter_brings_its_own_rank(
    adapter: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "What is it?", "completion": " a plant"}))
    common = ["evaluate", "--model", str(tiny_folder("llama")), "--adapter", str(adapter)]
    common += ["--data", str(data), "--device", "cpu"]
    found = []
    for flags in ([], ["--lora-rank", "4", "--lora-targets", *TARGETS["llama"]]):
        assert main([*common, *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["response_nll_per_token"])
    assert found[0] == found[1]
    for flag, value, match in (
        ("--lora-rank", "2", "its r is 4, and --lora-rank says 2; give --lora-rank 4, or no such"),
        ("--lora-alpha", "4", "its lora_alpha is 8, and --lora-alpha says 4"),
        ("--lora-targets", "q_proj", "its target_modules are .* says q_proj"),
    ):
        assert main([*common, flag, value]) == 1
        assert re.search(match, " ".join(capsys.readouterr().err.split()))


def test_lm_eval_scores_the_adapter(adapter: Path, tiny_folder: Folder) -> None:
    folder = tiny_folder("llama")
    make(folder, adapter, target_modules=TARGETS["llama"], bias="none", use_dora=True)
    turns = (Message("user", "Which is a planet?"), Message("assistant", "Mars"))
    questions = [
        Example(turns, f"mine:{n}", choices=tuple(words), answer=0)
        for n, words in enumerate((("Mars", "the sun"), ("ice", "steam", "fog"), ("a", "b")))
    ]
    model = load_model(ModelConfig(str(folder), "float64", device="cpu"), adapter)
    template = make_template("qa", model.tokenizer, questions)
    found = choice_accuracy(model, model.zero_theta(), questions, template=template)
    with silent():
        peft = PeftModel.from_pretrained(base(folder), str(adapter)).eval()
    expected = []
    for question in questions:
        assert question.choices is not None
        text = "Question: Which is a planet?\nAnswer:"
        start = len(model.tokenizer.encode(text))
        scores = []
        for choice in question.choices:
            ids = model.tokenizer.encode(f"{text} {choice}")
            labels = tuple(i >= start for i in range(len(ids)))
            scores.append(-nll_of(peft, Encoded(tuple(ids), labels, (0, 0))))
        expected.append(max(range(len(scores)), key=scores.__getitem__) == 0)
    assert found.correct == tuple(expected)


# --- what `train` saves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "targets"),
    [
        ("llama", ("all-linear",)),
        ("gpt2", ("all-linear",)),
        ("llama", ("q_proj", "lm_head")),
        ("mixtral", ("all-linear",)),
        ("qwen2_moe", ("all-linear",)),
    ],
)
def test_what_is_saved_is_read_back(arch: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    folder = tiny_model(arch, tmp_path / arch)
    config = ModelConfig(str(folder), device="cpu", lora_rank=2, lora_targets=targets)
    model = load_model(config)
    noise = torch.randn(model.size, generator=torch.Generator().manual_seed(1))
    theta = model.fresh_theta(0) + 0.1 * noise
    adapter_folder(model, theta, tmp_path / "adapter")
    model.write(model.zero_theta())
    assert torch.equal(read_adapter(model, tmp_path / "adapter"), theta)
    evaluated = load_model(dataclasses.replace(config, lora_rank=8), tmp_path / "adapter")
    expected = nll_by_peft(folder, tmp_path / "adapter", "float32")
    assert nll_here(evaluated, evaluated.zero_theta()) == pytest.approx(expected, rel=1e-5)
    assert nll_here(model, theta) == pytest.approx(expected, rel=1e-5)
