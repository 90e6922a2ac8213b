"""A 16-bit model in float32 is the float32 model of its weights, and holds no copy of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nacd.data import Batch
from nacd.meta import Exact
from nacd.meta.losses import EmbeddingLoss
from nacd.model import products
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.upcast import in_float32
from tiny import ROWS

Folder = Callable[[str], Path]


def low_and_wide(folder: Path, dtype: str = "bfloat16") -> tuple[LoraModel, LoraModel]:
    """A 16-bit model, and one in float32 with its very weights."""
    low, wide = (
        load_model(ModelConfig(str(folder), dtype=name, device="cpu", lora_rank=2))  # pyright: ignore[reportArgumentType]
        for name in (dtype, "float32")
    )
    short = dict(low.hf.named_parameters())
    for name, parameter in wide.hf.named_parameters():
        if not parameter.requires_grad:
            parameter.data.copy_(short[name].data)
    return low, wide


def found(model: LoraModel, vectors: Tensor) -> list[Tensor]:
    """A loss, its gradients, and both second-order products."""
    ids = torch.randint(5, ROWS - 10, (3, 10), generator=torch.Generator().manual_seed(0))
    slots, response = torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool)
    slots[:, 2:5], response[:, 6:9] = torch.arange(9).view(3, 3), True
    loss = EmbeddingLoss(model, Batch(ids, torch.ones_like(ids), response, slots), vectors)
    along = torch.arange(model.size, dtype=torch.float32)
    theta = model.fresh_theta(0) + 0.05 * torch.sin(along)  # B is not 0
    known = loss.slopes(theta, learnables=True)
    twice = Exact()(loss, theta, torch.cos(along), known)
    assert twice.theta is not None
    return [known.value, known.theta, *known.learnables, twice.theta, *twice.learnables]


@pytest.mark.parametrize("arch", ["opt", "llama", "gpt2", "mixtral"])
def test_it_is_the_float32_model_of_the_same_weights(arch: str, tiny_folder: Folder) -> None:
    low, wide = low_and_wide(tiny_folder(arch))
    vectors = low.embed(torch.arange(20, 29)).float() * 1.1
    expected, before = found(wide, vectors), found(low, vectors)
    with in_float32(low):
        for one, other in zip(found(low, vectors), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert {p.dtype for p in low.hf.parameters() if not p.requires_grad} == {torch.bfloat16}
    after = found(low, vectors)
    assert all(map(torch.equal, after, before)), "it is as it was"
    assert not torch.allclose(after[3], expected[3], rtol=1e-3), "16 bits differ"


def test_one_matrix_is_there_at_a_time(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, _ = low_and_wide(tiny_folder("llama"), "float16")
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most: list[int] = []
    plain = products._Product.forward

    def watched(ctx: object, x: Tensor, wide: Callable[[], Tensor], across: bool) -> Tensor:
        def made() -> Tensor:
            matrix = wide()
            alive.add(matrix)
            most.append(len(alive))
            return matrix

        y = plain(ctx, x, made, across)
        ctx.wide = wide  # pyright: ignore[reportAttributeAccessIssue]
        return y

    monkeypatch.setattr(products._Product, "forward", staticmethod(watched))
    with in_float32(low):
        found(low, low.embed(torch.arange(20, 29)).float())
    assert len(most) > 4 * 14, "forward, backward, and both once more, of 14 matrices and the head"
    assert max(most) == 1
