"""A model whose layers are spread over two processes, against the same model in one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nacd.config.recipe import Recipe
from nacd.data import Encoded, collate
from nacd.data.rows import learnable_rows
from nacd.errors import UserError
from nacd.meta import FirstOrder, meta_gradient
from nacd.meta.objectives import target_objective
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state
from together import together

ROWS = [
    Encoded(tuple(range(5, 25)), (False,) * 10 + (True,) * 10, (1, 8)),
    Encoded(tuple(range(40, 55)), (False,) * 5 + (True,) * 10, (1, 5)),
]


def figures(model: LoraModel) -> list[torch.Tensor]:
    """Losses, gradients and a meta-gradient at a start that is not LoRA's own."""
    noise = torch.randn(model.size, generator=torch.Generator().manual_seed(3))
    theta = model.fresh_theta(1) + 0.02 * noise
    pseudo = learnable_rows(ROWS, "prompt", 0)
    vectors = model.embed(pseudo.ids).float()
    batch = pseudo.batch([0, 1])
    loss, in_theta, in_vectors = model.value_and_grad(theta, batch, vectors, in_vectors=True)
    assert in_vectors is not None
    recipe = Recipe(learning_rate=1e-2, batch_size=2)
    found = meta_gradient(
        InnerLoop(model, recipe, 2),
        Start(theta, initial_state(recipe, theta)),
        [batch, batch],
        torch.tensor(math.log(1e-2)),
        vectors,
        target_objective(model, [collate(ROWS[::-1], 0)]),
        FirstOrder(2e-3),
    )
    nll, _ = model.row_nll(theta, batch, vectors)
    return [loss, in_theta, in_vectors, nll, found.vectors, found.log_rate, found.theta]


def test_losses_gradients_and_a_meta_gradient_are_those_of_one_process(
    tiny_folder: Callable[[str], Path],
) -> None:
    folder = str(tiny_folder("llama"))
    alone = figures(load_model(ModelConfig(model=folder, lora_rank=2, device="cpu")))

    def sharded() -> Any:
        model = load_model(ModelConfig(model=folder, lora_rank=2, device="cpu", shard=True))
        held = sum(
            p.to_local().numel() if hasattr(p, "to_local") else p.numel()
            for p in model.hf.model.layers.parameters()
            if not p.requires_grad
        )
        whole = sum(p.numel() for p in model.hf.model.layers.parameters() if not p.requires_grad)
        return figures(model), held / whole

    for found, share in together(sharded):
        assert share == pytest.approx(0.5, abs=0.01)
        for ours, other in zip(alone, found, strict=True):
            assert float(other.norm()) > 0
            assert torch.allclose(ours, other, rtol=1e-5, atol=1e-5 * float(ours.norm()))


def test_one_process_cannot_spread_a_model(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="--shard: spreads a model over several processes"):
        load_model(ModelConfig(model=str(tiny_folder("llama")), shard=True))
