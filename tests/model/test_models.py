"""Models that cannot be distilled, and model files that are not what they should be."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nacd.errors import UserError
from nacd.model import checkpoints
from nacd.model.lora import ModelConfig, load_model
from nacd.model.probe import require_causal

Folder = Callable[[str], Path]


@pytest.mark.parametrize("arch", ["llama", "opt"])
def test_a_model_that_needs_ids_is_refused_by_name(arch: str, tiny_folder: Folder) -> None:
    config = ModelConfig(model="owner/per-layer-embeddings")
    hf: Any = AutoModelForCausalLM.from_pretrained(tiny_folder(arch))
    require_causal(hf, config)
    plain = hf.forward

    def needs_ids(input_ids: Any = None, inputs_embeds: Any = None, **more: Any) -> Any:
        if input_ids is None:
            raise ValueError("give input_ids")
        return plain(input_ids=input_ids, inputs_embeds=inputs_embeds, **more)

    hf.forward = needs_ids
    with pytest.raises(UserError, match=r"owner/per-layer-embeddings: .* inputs_embeds alone"):
        require_causal(hf, config)

    def reads_ids_too(input_ids: Any = None, inputs_embeds: Any = None, **more: Any) -> Any:
        found = plain(input_ids=input_ids, inputs_embeds=inputs_embeds, **more)
        if input_ids is not None:
            found.logits = found.logits + 0.1 * found.logits.abs().max()
        return found

    hf.forward = reads_ids_too
    with pytest.raises(UserError, match=r"owner/per-layer-embeddings: .* reads the ids elsewhere"):
        require_causal(hf, config)


def test_lora_on_embeddings_is_refused(tiny_folder: Folder) -> None:
    folder = str(tiny_folder("llama"))
    with pytest.raises(UserError, match="--lora-targets q_proj embed_tokens: LoRA on token embed"):
        load_model(ModelConfig(folder, lora_targets=("q_proj", "embed_tokens")))


def test_a_model_that_is_let_go_is_freed_at_once(tiny_folder: Folder) -> None:
    model = load_model(ModelConfig(str(tiny_folder("llama"))))
    weights = weakref.ref(model.hf.get_input_embeddings().weight)
    gc.disable()
    try:
        del model
        assert weights() is None, "a cycle keeps the weights until the collector comes by"
    finally:
        gc.enable()


def test_a_gguf_file_is_converted_once_and_its_checksum_held(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(checkpoints, "cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(UserError, match=r"a\.gguf: SHA-256 is .* expected 000000000000"):
        checkpoints._convert(gguf, "0" * 64)
    with pytest.raises(UserError, match="cannot read this GGUF file"):
        checkpoints._convert(gguf)

    converted: list[str] = []

    def load(kind: Any) -> Any:
        def from_pretrained(folder: str, gguf_file: str, **more: Any) -> Any:
            converted.append(gguf_file)
            wanted = {"output_loading_info": True} if "output_loading_info" in more else {}
            return kind.from_pretrained(tiny_folder("llama"), **wanted)

        return from_pretrained

    with monkeypatch.context() as patch:
        for kind in (AutoModelForCausalLM, AutoTokenizer):
            stand_in = SimpleNamespace(from_pretrained=load(kind))
            patch.setattr(checkpoints, kind.__name__, stand_in)
        folder = checkpoints._convert(gguf)
        assert checkpoints._convert(gguf) == folder
        assert converted == ["a.gguf"] * 2, "the model and the tokenizer, once"
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-1])
        assert checkpoints._convert(gguf) == folder
        assert converted == ["a.gguf"] * 4, "a damaged copy is made anew"
    assert (folder / "model.safetensors").read_bytes() == whole
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"


def test_lora_begins_as_peft_draws_it(tiny_folder: Folder) -> None:
    """A within +-1/sqrt(fan-in), all the way to it, on either side; B zero; each seed its own."""
    model = load_model(ModelConfig(model=str(tiny_folder("llama")), lora_rank=8))
    theta = model.named_theta(model.fresh_theta(0))
    other = model.named_theta(model.fresh_theta(1))
    fans = set()
    for name, values in theta.items():
        if "lora_B" in name:
            assert not values.any()
            continue
        rank, fan_in = values.shape
        fans.add(fan_in)
        assert rank == 8
        bound = fan_in**-0.5
        assert 0.95 * bound < float(values.max()) <= bound
        assert 0.95 * bound < -float(values.min()) <= bound
        assert not torch.equal(values, other[name])
        drawn = torch.empty(rank, fan_in)
        torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))  # what peft calls
        assert float(drawn.abs().max()) == pytest.approx(bound, rel=0.05)
    assert len(fans) > 1, "matrices of unlike width"


def test_all_linear_says_which_experts_it_leaves_out(tiny_folder: Folder) -> None:
    """peft knows the fused matrices of Mixtral's experts, and not those of Qwen2-MoE's."""
    config = ModelConfig(str(tiny_folder("mixtral")), device="cpu")
    model = load_model(config)
    assert any("mlp.experts" in name for name in model.names)
    assert model.notes == []
    config = ModelConfig(str(tiny_folder("qwen2_moe")), device="cpu")
    model = load_model(config)
    assert not any("mlp.experts" in name for name in model.names)
    experts = sum(p.numel() for n, p in model.hf.named_parameters() if ".experts." in n)
    frozen = sum(p.numel() for p in model.hf.parameters() if not p.requires_grad)
    assert len(model.notes) == 1
    assert f"({experts / frozen:.0%} of its weights) get no LoRA" in model.notes[0]
    assert load_model(replace(config, lora_targets=("q_proj",))).notes == []
