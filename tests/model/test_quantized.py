"""Frozen weights in 4 bits: what is multiplied is what bitsandbytes keeps, in full float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nacd.data.batches import collate
from nacd.data.example import Encoded
from nacd.errors import UserError
from nacd.meta import Exact, FirstOrder
from nacd.meta.losses import EmbeddingLoss
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.products import count, is_quantized, matrix_shape
from nacd.model.upcast import in_float32
from nacd.store.extras import installed

Folder = Callable[[str], Path]
ROWS = [
    Encoded(tuple(range(9 + i, 19 + 2 * i)), (False,) * 5 + (True,) * (5 + i), (0, 5))
    for i in range(3)
]


def load(folder: Path, **options: Any) -> LoraModel:
    return load_model(ModelConfig(str(folder), device="cpu", lora_rank=2, **options))


def test_a_missing_library_is_named(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacd.store.extras.installed", lambda module: False)
    said = "--quantize 4bit: needs the package bitsandbytes.*`pip install bitsandbytes`"
    with pytest.raises(UserError, match=said):
        load(tiny_folder("llama"), quantize="4bit")


@pytest.mark.skipif(not installed("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes")
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_four_bits(arch: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(arch)
    plain, small = load(folder), load(folder, quantize="4bit")
    matrices = {n: m for n, m in small.hf.named_modules() if is_quantized(m)}
    assert len(matrices) == {"llama": 14, "gpt2": 8}[arch]
    whole = sum(p.numel() for p in plain.hf.parameters())
    assert count(small.hf.parameters()) == whole
    theta = plain.fresh_theta(0)
    theta = theta + 0.05 * torch.sin(torch.arange(plain.size, dtype=theta.dtype))  # B is not 0
    assert small.size == plain.size
    batch = collate(ROWS, 0)
    loss, v = EmbeddingLoss(small, batch, torch.zeros(0, small.width)), torch.cos(3 * theta)
    known = loss.slopes(theta, learnables=True)
    exact = Exact()(loss, theta, v, known).theta
    found = FirstOrder(1e-3)(loss, theta, v, known).theta
    assert exact is not None
    assert found is not None
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))
    # the same as a plain model that is given what the four bits say
    from bitsandbytes.functional import dequantize_4bit

    for name, module in matrices.items():
        its: Any = plain.hf.get_submodule(name)
        said = dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert said.shape == matrix_shape(module)
        its.weight.data.copy_(said if isinstance(its, torch.nn.Linear) else said.T)
    expected = EmbeddingLoss(plain, batch, torch.zeros(0, plain.width))
    torch.testing.assert_close(known.theta, expected.slopes(theta, learnables=False).theta)
    torch.testing.assert_close(exact, Exact()(expected, theta, v, known).theta)
    low = load(folder, quantize="4bit", dtype="bfloat16")
    short = EmbeddingLoss(low, batch, torch.zeros(0, low.width))
    with in_float32(low):
        wide = short.slopes(theta, learnables=False).theta
    assert float((wide - known.theta).norm() / wide.norm()) < 0.1, "its embeddings are shorter too"
