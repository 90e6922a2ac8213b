"""GGUF files as they come: what the conversion makes of them, or one error."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, load_model
from tiny import CHATML

ENDS = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    path: Path,
    folder: Path,
    *,
    template: str = "",
    special: bool = True,
    without: Collection[str] = (),
    **sizes: int,
) -> Path:
    """A Llama's folder as a float32 GGUF file."""
    config = json.loads((folder / "config.json").read_text()) | sizes
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    names = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types([3 if number < 5 else 1 for number in range(len(names))])
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["merges"]]
    writer.add_token_merges(merges)
    if special:
        writer.add_pad_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    if template:
        writer.add_chat_template(template)
    for key, value in load_file(folder / "model.safetensors").items():
        name = key.removesuffix(".weight")
        if name in ENDS:
            name = ENDS[name]
        else:
            _, _, number, part = name.split(".", 3)
            name = f"blk.{number}.{LAYER[part]}"
        if name not in without:
            array = value.numpy().astype(np.float32)
            if name.endswith(("attn_q", "attn_k")):  # GGUF pairs neighbours, transformers halves
                heads = config["num_attention_heads" if name[-1] == "q" else "num_key_value_heads"]
                split = array.reshape(heads, 2, -1, array.shape[1])
                array = np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))
            writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def load(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LoraModel]:
    monkeypatch.setenv("NACD_CACHE", str(tmp_path / "cache"))

    def write_and_load(**changes: Any) -> LoraModel:
        path = write_gguf(tmp_path / "mine.gguf", tiny_folder("llama"), **changes)
        return load_model(ModelConfig(str(path), device="cpu"))

    return write_and_load


def test_a_gguf_file_is_the_model_that_it_was_made_of(
    load: Callable[..., LoraModel], tiny_folder: Callable[[str], Path]
) -> None:
    ids = torch.tensor([[1, 40, 5, 7, 43]])
    for template in ("", CHATML):
        model = load(template=template)
        assert (model.tokenizer.chat_template or "") == template
        original: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
        with torch.no_grad():
            torch.testing.assert_close(model.hf(ids).logits, original(ids).logits)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"special": False}, "names no end-of-sequence token"),
        ({"without": ["blk.1.ffn_up"]}, r"lacks weights .* \(model\.layers\.1\.mlp\.up_proj"),
        ({"num_hidden_layers": 3}, "its header says 3 layers, .* fewer .*another conversion"),
        ({"vocab_size": 400}, "308 x 32 in the checkpoint, and 400 x 32 by its header"),
    ],
)
def test_a_gguf_file_that_is_not_whole_is_refused(
    changes: dict[str, Any], match: str, load: Callable[..., LoraModel], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"mine\.gguf: .*{match}"):
        load(**changes)
    assert not (tmp_path / "cache").exists(), "nothing of it is kept"
