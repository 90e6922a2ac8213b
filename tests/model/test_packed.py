"""Packed rows and parts of batches against every row alone through the plain model, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from float64 import float64_only
from nacd.data import Batch, Encoded, collate
from nacd.meta import Exact, make_engine
from nacd.meta.losses import EmbeddingLoss
from nacd.model.lora import LoraModel, ModelConfig, load_model, twice_differentiable
from nacd.model.per_row import row_gradients
from nacd.model.probe import tells_rows_apart
from nacd.selection.hidden import last_hidden
from tiny import ARCHITECTURES, ROWS

Folder = Callable[[str], Path]
ALL = (*ARCHITECTURES, "mistral")
PACKS = tuple(arch for arch in ALL if arch != "opt")
"""OPT's mask takes no notice of positions."""
LENGTHS = (14, 5, 9, 3)
"""Longer and shorter than the sliding windows."""
VECTORS = 9


@pytest.fixture
def _wide() -> Iterator[None]:
    with float64_only():
        yield


@pytest.fixture(scope="module")
def models(tiny_folder: Folder) -> Callable[[str], LoraModel]:
    loaded: dict[str, LoraModel] = {}

    def model(arch: str) -> LoraModel:
        if arch not in loaded:
            loaded[arch] = load(tiny_folder(arch))
        loaded[arch].micro = 384
        return loaded[arch]

    return model


def load(folder: Path, **changes: Any) -> LoraModel:
    return load_model(ModelConfig(str(folder), "float64", device="cpu", lora_rank=2, **changes))


def batch_of(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Rows of unlike lengths, whose second halves are labels, vectors in the first halves."""
    generator = torch.Generator().manual_seed(seed)
    rows, slots, count = [], [], 0
    for length in lengths:
        ids = torch.randint(5, ROWS - 10, (length,), generator=generator).tolist()
        half = length // 2
        rows.append(Encoded(tuple(ids), (False,) * half + (True,) * (length - half), (0, half)))
        own = [-1] * length
        own[0], count = count % VECTORS, count + 1
        slots.append(own)
    return collate(rows, 0, slots)


def theta_of(model: LoraModel) -> Tensor:
    noise = torch.randn(model.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return model.fresh_theta(1) + 0.05 * noise


def vectors_of(model: LoraModel) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return model.embed(torch.randint(5, ROWS - 10, (VECTORS,), generator=generator)) * 1.1


def alone(model: LoraModel, theta: Tensor, batch: Batch, vectors: Tensor) -> list[Tensor]:
    """Every row's summed response NLL (), by a plain forward of that row and nothing else."""
    losses = []
    for b in range(len(batch.ids)):
        row = batch.row(b)
        embeds = model.embed(row.ids).clone()
        where = row.slots >= 0
        embeds[where] = vectors[row.slots[where]]
        logits = torch.func.functional_call(
            model.hf, model.named_theta(theta), (), {"inputs_embeds": embeds, "use_cache": False}
        ).logits[0, :-1]
        nll = -logits.log_softmax(-1).gather(1, row.ids[0, 1:, None])[:, 0]
        losses.append(nll[row.response[0, 1:]].sum())
    return losses


class Oracle:
    """Losses and gradients to the second order, of one autograd graph over rows alone."""

    def __init__(self, model: LoraModel, batch: Batch, v: Tensor | None = None):
        theta = theta_of(model).requires_grad_()
        vectors = vectors_of(model).requires_grad_()
        labels = batch.response[:, 1:].sum()
        with twice_differentiable(), torch.enable_grad():
            rows = alone(model, theta, batch, vectors)
            loss = torch.stack(rows).sum() / labels
            slope, in_vectors = torch.autograd.grad(loss, (theta, vectors), create_graph=True)
            self.rows = torch.stack(rows).detach()
            self.loss, self.slope, self.vectors = loss, slope.detach(), in_vectors.detach()
            if v is not None:
                self.products = torch.autograd.grad(slope @ v, (vectors, theta))


def close(found: Tensor | None, expected: Tensor, within: float = 1e-11) -> None:
    assert found is not None
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < within


def forwards(model: LoraModel, run: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes that pass through the model while `run` runs."""
    shapes: list[tuple[int, ...]] = []
    hook = model.hf.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    try:
        run()
    finally:
        hook.remove()
    return shapes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ALL)
def test_which_architectures_tell_rows_apart(
    arch: str, attention: Any, tiny_folder: Folder
) -> None:
    model = load(tiny_folder(arch), attention=attention)
    assert model.packs == (arch in PACKS)
    shapes = forwards(model, lambda: model.value_and_grad(theta_of(model), batch_of()))
    assert shapes == [(1, sum(LENGTHS)) if model.packs else (len(LENGTHS), max(LENGTHS))]


def test_an_architecture_that_mixes_packed_rows_is_padded(tiny_folder: Folder) -> None:
    """Positions not taken at all, taken but attended across, and refused."""
    hf: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    config = ModelConfig("some/model")
    assert tells_rows_apart(hf, config)
    plain = hf.forward

    def ignores(position_ids: Any = None, **inputs: Any) -> Any:
        return plain(**inputs)

    def mixes(inputs_embeds: Any, position_ids: Any = None, **inputs: Any) -> Any:
        ones = torch.ones(inputs_embeds.shape[:2], dtype=torch.long)
        inputs |= {"attention_mask": ones, "position_ids": position_ids}
        return plain(inputs_embeds=inputs_embeds, **inputs)

    def leaks(inputs_embeds: Any, **inputs: Any) -> Any:
        """As a convolution over neighbouring tokens would."""
        mixed = inputs_embeds + 0.01 * inputs_embeds.roll(1, 1)
        return plain(inputs_embeds=mixed, **inputs)

    def refuses(inputs_embeds: Any, use_cache: bool = False) -> Any:
        return plain(inputs_embeds=inputs_embeds)

    for forward in (ignores, mixes, leaks, refuses):
        hf.forward = forward
        assert not tells_rows_apart(hf, config), forward.__name__


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("micro", [384, 20, 1])
@pytest.mark.parametrize("arch", ALL)
def test_loss_and_gradients_are_those_of_rows_alone(
    arch: str, micro: int, models: Callable[[str], LoraModel]
) -> None:
    model, batch = models(arch), batch_of()
    model.micro = micro
    expected = Oracle(model, batch)
    loss, slope, other = model.value_and_grad(
        theta_of(model), batch, vectors_of(model), in_vectors=True
    )
    close(loss, expected.loss.detach())
    close(slope, expected.slope)
    close(other, expected.vectors)
    sums, counts = model.row_nll(theta_of(model), batch, vectors_of(model))
    close(sums, expected.rows)
    assert counts.tolist() == batch.response[:, 1:].sum(1).tolist()
    close(model.loss_at(theta_of(model), batch, vectors_of(model)).detach(), expected.loss.detach())


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("micro", [384, 20])
@pytest.mark.parametrize("arch", ALL)
def test_every_engine_is_that_of_rows_alone(
    arch: str, micro: int, models: Callable[[str], LoraModel]
) -> None:
    model, batch = models(arch), batch_of()
    model.micro = micro
    v = torch.randn(model.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = Oracle(model, batch, v)
    theta, vectors = theta_of(model), vectors_of(model)
    loss = EmbeddingLoss(model, batch, vectors)
    known = loss.slopes(theta, learnables=True)
    found = {
        name: make_engine(name, 1e-6)(loss, theta, v, known)
        for name in ("exact", "tesla", "first-order", "one-sided")
    }
    in_slots = expected.products[0][loss.own]
    assert float(in_slots.norm()) == pytest.approx(float(expected.products[0].norm()))
    close(found["exact"].learnables[0], in_slots)
    close(found["exact"].theta, expected.products[1])
    close(found["tesla"].learnables[0], in_slots)
    if arch == "opt":  # its kinks are another question
        return
    for name, within in (("first-order", 1e-5), ("one-sided", 1e-4)):
        close(found[name].learnables[0], in_slots, within)
        close(found[name].theta, expected.products[1], within)


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("micro", [384, 20, 1])
@pytest.mark.parametrize("arch", ALL)
def test_rows_gradients_and_hidden_states_are_those_of_rows_alone(
    arch: str, micro: int, models: Callable[[str], LoraModel]
) -> None:
    model, batch = models(arch), batch_of()
    batch = replace(batch, slots=torch.full_like(batch.slots, -1))
    model.micro = micro
    theta = theta_of(model)
    rows, slope = model.rows_and_grad(theta, batch)
    with row_gradients(model) as gradients:
        found = gradients(theta, batch)
    hidden = last_hidden(model, batch)
    assert hidden.shape[:2] == batch.ids.shape
    for b in range(len(batch.ids)):
        leaf = theta.clone().requires_grad_()
        with torch.enable_grad():
            (nll,) = alone(model, leaf, batch.row(b), vectors_of(model))
            (own,) = torch.autograd.grad(nll, leaf)
        close(found[b], own / batch.row(b).response[:, 1:].sum())
        close(rows[b], nll.detach())
        slope = slope - own / batch.response[:, 1:].sum()
        model.write(theta)
        with torch.no_grad():
            states = model.hf.base_model(input_ids=batch.row(b).ids).last_hidden_state[0]
        close(hidden[b, : len(states)], states)
    assert float(slope.norm()) < 1e-11


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_packed_under_checkpointing(arch: str, tiny_folder: Folder) -> None:
    plain = load(tiny_folder(arch))
    checkpointed = load(tiny_folder(arch), gradient_checkpointing=True)
    arguments = (theta_of(plain), batch_of(), vectors_of(plain))
    expected = plain.value_and_grad(*arguments, in_vectors=True)
    found = checkpointed.value_and_grad(*arguments, in_vectors=True)
    for a, b in zip(found, expected, strict=True):
        assert b is not None
        close(a, b, 1e-12)


@pytest.mark.usefixtures("_wide")
def test_a_row_without_a_label_adds_nothing(models: Callable[[str], LoraModel]) -> None:
    model, batch = models("llama"), batch_of(lengths=(*LENGTHS, 1))
    arguments = (theta_of(model), batch_of(), vectors_of(model))
    expected = model.value_and_grad(*arguments, in_vectors=True)
    for micro in (384, 1):
        model.micro = micro
        found = model.value_and_grad(arguments[0], batch, arguments[2], in_vectors=True)
        for a, b in zip(found, expected, strict=True):
            assert b is not None
            close(a, b)
        assert float(model.row_nll(arguments[0], batch)[0][-1]) == 0.0
        v = torch.ones(model.size, dtype=torch.float64)
        loss = EmbeddingLoss(model, *arguments[1:])
        known = loss.slopes(arguments[0], learnables=False)
        assert Exact()(loss, arguments[0], v, known).learnables[0].isfinite().all()
