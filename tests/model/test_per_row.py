"""Every row's gradient of a batch against the row alone, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from float64 import float64_only
from nacd.data import Encoded, collate
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.per_row import row_gradients
from tiny import ARCHITECTURES, MIXTURES

ROWS = [
    Encoded((1, 40, 41, 42, 43, 44, 45), (False,) * 4 + (True,) * 3, (1, 4)),
    Encoded((1, 90, 12), (False, False, True), (1, 2)),
    Encoded((1, 7, 200, 201, 15), (False, False, True, True, True), (1, 2)),
]


def load(folder: Path, **changes: Any) -> LoraModel:
    return load_model(ModelConfig(str(folder), "float64", device="cpu", lora_rank=2, **changes))


def somewhere(model: LoraModel) -> Tensor:
    """A theta at which A and B both have a gradient."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(model.size, generator=generator, dtype=torch.float64)
    return model.fresh_theta(1) + 0.05 * noise


def alone(model: LoraModel, theta: Tensor, row: Encoded) -> Tensor:
    """A row's gradient from its ids, by the module's own parameters."""
    model.write(theta)
    loss = model.hf(input_ids=torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
    labels = torch.tensor(row.ids[1:])
    nll = -loss[torch.arange(len(labels)), labels][torch.tensor(row.response[1:])].mean()
    parts = torch.autograd.grad(nll, [p for p in model.hf.parameters() if p.requires_grad])
    return torch.cat([part.flatten() for part in parts])


def held_to_alone(model: LoraModel, *, together: bool, within: float = 1e-12) -> None:
    """Compare a batch's gradients to the rows', and count the forward passes that they took."""
    theta, passes = somewhere(model), []
    counter = model.hf.register_forward_pre_hook(lambda *_: passes.append(1))
    exact = float64_only if within < 1e-9 else contextlib.nullcontext
    with exact(), row_gradients(model) as gradients:
        found = gradients(theta, collate(ROWS, model.tokenizer.pad_token_id))
        again = gradients(theta, collate(ROWS, model.tokenizer.pad_token_id))
    counter.remove()
    assert len(passes) == (2 if together else 2 * len(ROWS) + (len(passes) % 2))
    with exact():
        expected = torch.stack([alone(model, theta, row) for row in ROWS])
    scale = expected.norm(dim=1)
    assert ((found - expected).norm(dim=1) / scale).max() < within
    assert torch.equal(found, again)
    rows = nn.functional.normalize(expected, dim=1)
    assert (rows @ rows.T).fill_diagonal_(0).abs().max() < 0.99  # rows that can be mixed up


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_of_a_padded_batch(arch: str, tiny_folder: Callable[[str], Path]) -> None:
    held_to_alone(load(tiny_folder(arch)), together=True)


def test_under_gradient_checkpointing(tiny_folder: Callable[[str], Path]) -> None:
    model = load(tiny_folder("llama"), gradient_checkpointing=True)
    held_to_alone(model, together=True, within=1e-6)  # recomputed without the float64 norms


def test_lora_on_the_head_takes_rows_one_at_a_time(tiny_folder: Callable[[str], Path]) -> None:
    model = load(tiny_folder("llama"), lora_targets=("lm_head", "q_proj"))
    held_to_alone(model, together=False)


def test_tokens_that_are_routed_take_rows_one_at_a_time(
    tiny_folder: Callable[[str], Path],
) -> None:
    model = load(tiny_folder("llama"))
    mlp = model.hf.model.layers[0].mlp
    inner = mlp.forward

    def routed(x: Tensor) -> Tensor:
        """Every other position alone goes through the layer, as tokens do to an expert."""
        out = x.clone()
        out[:, ::2] = inner(x[:, ::2].flatten(0, 1)).view_as(x[:, ::2])
        return out

    mlp.forward = routed
    held_to_alone(model, together=False)


@pytest.mark.parametrize("arch", MIXTURES)
def test_of_a_mixture(arch: str, tiny_folder: Callable[[str], Path]) -> None:
    """Fused matrices of experts are changed by LoRA's, which are then not called themselves."""
    model = load(tiny_folder(arch))
    fused = [name for name in model.names if ".mlp.experts." in name]
    assert bool(fused) == (arch == "mixtral")
    held_to_alone(model, together=not fused)


def test_the_module_is_as_before_afterwards(tiny_folder: Callable[[str], Path]) -> None:
    model = load(tiny_folder("llama"))
    theta, batch = somewhere(model), collate(ROWS, model.tokenizer.pad_token_id)
    before = model.value_and_grad(theta, batch)
    with row_gradients(model) as gradients:
        gradients(theta, batch)
        within = model.value_and_grad(theta, batch)
    after = model.value_and_grad(theta, batch)
    for found in (within, after):
        assert torch.equal(found[0], before[0])
        assert torch.equal(found[1], before[1])
