from __future__ import annotations

from typing import Any

import pytest
import torch

from nacd.data import Encoded, collate
from nacd.model.lora import ModelConfig, load_model
from tiny import ARCHITECTURES, ROWS, TOKENS


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loads_with_its_quirks(arch: str, tiny_folder: Any) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder(arch)), dtype="float64", device="cpu"))
    assert model.width == (24 if arch == "opt" else 32)
    assert model.table.shape == (ROWS, model.width)
    assert len(model.tokenizer) == TOKENS
    text = "What is 你好? naïve 🙂"
    ids = model.tokenizer(text)["input_ids"]
    assert (ids[0] == model.tokenizer.bos_token_id) == (arch in ("opt", "llama", "gemma3"))
    assert model.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert bool(model.tokenizer.chat_template) == (arch in ("llama", "qwen3", "gemma3"))
    scaled = not torch.equal(model.table, model.hf.get_input_embeddings().weight)
    assert scaled == (arch == "gemma3")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_changes_nothing(arch: str, tiny_folder: Any) -> None:
    """Position offsets and sliding windows included: a padded row's loss is the row's own."""
    model = load_model(ModelConfig(model=str(tiny_folder(arch)), dtype="float64", device="cpu"))
    rows = [
        Encoded(tuple(range(5, 5 + length)), (False,) * 3 + (True,) * (length - 3), (0, 3))
        for length in (6, 14, 11)
    ]
    theta = model.fresh_theta(0)
    pad = model.tokenizer.pad_token_id
    together, counts = model.row_nll(theta, collate(rows, pad))
    alone = torch.cat([model.row_nll(theta, collate([row], pad))[0] for row in rows])
    torch.testing.assert_close(together, alone)
    assert counts.tolist() == [3, 11, 8]
