"""What tells the engines apart: TESLA's missing curvature, one-sided's order, checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from float64 import float64_only
from nacd.config.recipe import Recipe
from nacd.data import Batch
from nacd.meta import (
    Engine,
    EngineName,
    Exact,
    FirstOrder,
    MetaGradient,
    make_engine,
    meta_gradient,
    unrolled_meta_gradient,
)
from nacd.meta.losses import EmbeddingLoss
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.per_row import row_gradients
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state
from tiny import ARCHITECTURES, MIXTURES, ROWS

Folder = Callable[[str], Path]
VECTORS = 9
FIRST_LAYER = {
    "opt": "model.decoder.layers.0.fc1",
    "llama": "model.layers.0.mlp",
    "gpt2": "transformer.h.0.mlp",
    "qwen3": "model.layers.0.mlp",
    "gemma3": "model.layers.0.mlp",
}


@pytest.fixture(scope="module")
def model(tiny_folder: Folder) -> LoraModel:
    return load_model(ModelConfig(model=str(tiny_folder("llama")), dtype="float64", lora_rank=2))


@pytest.fixture
def _wide() -> Iterator[None]:
    with float64_only():
        yield


def batch_of(seed: int) -> Batch:
    """Three rows of ten tokens; three vectors in each, three labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, ROWS - 10, (3, 10), generator=generator)
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, 6:9] = True
    slots = torch.full_like(ids, -1)
    slots[:, 2:5] = torch.randperm(VECTORS, generator=generator).view(3, 3)
    return Batch(ids, torch.ones_like(ids), response, slots)


def vectors_of(model: LoraModel) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return model.embed(torch.randint(5, ROWS - 10, (VECTORS,), generator=generator)) * 1.1


class Problem:
    """A trained start, batches and a quadratic objective."""

    def __init__(self, model: LoraModel, rate: float, steps: int):
        recipe = Recipe(
            optimizer="sgd", learning_rate=rate, warmup=0.0, schedule="constant", clip=0.0
        )
        theta = model.fresh_theta(3)
        start = Start(theta, initial_state(recipe, theta))
        loop = InnerLoop(model, recipe, 100)
        vectors = vectors_of(model)
        warm_rate = torch.tensor(math.log(0.3), dtype=theta.dtype)
        warm = [batch_of(50 + i) for i in range(4)]
        start, _ = loop.run(start, warm, warm_rate, vectors)
        generator = torch.Generator().manual_seed(11)
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        self.goal = start.theta + 0.1 * noise
        log_rate = torch.tensor(math.log(rate), dtype=theta.dtype)
        batches = [batch_of(100 + i) for i in range(steps)]
        self.common = (loop, start, batches, log_rate, vectors)

    def by(self, engine: Engine) -> MetaGradient:
        def objective(theta: Tensor) -> tuple[float, Tensor]:
            return float(((theta - self.goal) ** 2).sum()), 2 * (theta - self.goal)

        return meta_gradient(*self.common, objective, engine)

    def unrolled(self) -> MetaGradient:
        return unrolled_meta_gradient(*self.common, lambda theta: ((theta - self.goal) ** 2).sum())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.usefixtures("_wide")
def test_tesla_is_right_for_one_step(model: LoraModel) -> None:
    problem = Problem(model, rate=0.3, steps=1)
    found, expected = problem.by(make_engine("tesla", 0.0)), problem.unrolled()
    assert relative(found.vectors, expected.vectors) < 1e-9
    assert relative(found.log_rate, expected.log_rate) < 1e-9


@pytest.mark.usefixtures("_wide")
def test_tesla_departs_as_learning_rate_times_steps_grows(model: LoraModel) -> None:
    cosines = []
    for rate, steps in ((1e-3, 2), (0.01, 4), (0.03, 4)):  # beyond, rounding grows too
        problem = Problem(model, rate, steps)
        expected = problem.unrolled()
        assert relative(problem.by(Exact()).vectors, expected.vectors) < 1e-8
        cosines.append(cosine(problem.by(make_engine("tesla", 0.0)).vectors, expected.vectors))
    assert cosines[0] > 0.9999
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[-1] < 0.9


@pytest.mark.usefixtures("_wide")
def test_one_sided_converges_at_first_order_central_at_second(model: LoraModel) -> None:
    problem = Problem(model, rate=0.3, steps=2)
    expected = problem.by(Exact()).vectors
    lengths = (1e-4, 1e-5)
    one_sided = [relative(problem.by(FirstOrder(e, False)).vectors, expected) for e in lengths]
    central = [relative(problem.by(FirstOrder(e)).vectors, expected) for e in lengths]
    assert all(c < o / 10 for c, o in zip(central, one_sided, strict=True))
    assert one_sided[0] / one_sided[1] == pytest.approx(10, rel=0.2)
    assert central[0] / central[1] == pytest.approx(100, rel=0.2)


def skipped(model: LoraModel) -> LoraModel:
    """No token reaches the first layer's MLP, as an expert that none is routed to."""
    model.hf.model.layers[0].mlp.forward = lambda x: 0.1 * x
    return model


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("arch", [*MIXTURES, "skipped"])
def test_the_engines_agree_on_mixtures_and_where_an_adapter_is_not_reached(
    arch: str, tiny_folder: Folder
) -> None:
    folder = str(tiny_folder("llama" if arch == "skipped" else arch))
    model = load_model(ModelConfig(folder, dtype="float64", device="cpu", lora_rank=2))
    if arch == "skipped":
        skipped(model)
    problem = Problem(model, rate=0.1, steps=2)
    expected = problem.unrolled()
    assert relative(problem.by(Exact()).vectors, expected.vectors) < 1e-8
    assert relative(problem.by(FirstOrder(1e-6)).vectors, expected.vectors) < 1e-4


def test_an_adapter_that_is_not_reached_has_gradient_zero(tiny_folder: Folder) -> None:
    folder = str(tiny_folder("llama"))
    model = skipped(load_model(ModelConfig(folder, dtype="float64", device="cpu", lora_rank=2)))
    theta, batch = model.fresh_theta(3), batch_of(1)
    theta = theta + 0.05 * torch.sin(torch.arange(model.size, dtype=theta.dtype))  # B is not 0
    leaf, vectors = theta.clone().requires_grad_(), vectors_of(model)
    (expected,) = torch.autograd.grad(model.loss_at(leaf, batch, vectors), leaf)
    _, found, _ = model.value_and_grad(theta, batch, vectors)
    torch.testing.assert_close(found, expected)
    for name, part in model.named_theta(found).items():
        assert bool(part.any()) != ("layers.0.mlp" in name)
    _, by_rows = model.rows_and_grad(theta, batch)
    _, whole, _ = model.value_and_grad(theta, batch)
    assert torch.equal(by_rows, whole)
    rows = torch.stack([model.value_and_grad(theta, batch.row(b))[1] for b in range(3)])
    with row_gradients(model) as gradients:
        torch.testing.assert_close(gradients(theta, batch), rows)


def test_a_zero_cotangent_gives_zero(model: LoraModel) -> None:
    theta, vectors = model.fresh_theta(3), vectors_of(model)
    loss = EmbeddingLoss(model, batch_of(1), vectors)
    known = loss.slopes(theta, learnables=True)
    for central in (True, False):
        found = FirstOrder(1e-2, central)(loss, theta, torch.zeros_like(theta), known)
        assert found.theta is not None
        assert float(found.theta.abs().max()) == 0.0
        assert [x.shape for x in found.learnables] == [vectors.shape]
        assert float(found.learnables[0].abs().max()) == 0.0


def test_every_name_makes_its_engine() -> None:
    expected: dict[Any, Engine] = {
        "exact": Exact(),
        "tesla": Exact(curvature=False),
        "first-order": FirstOrder(0.02, central=True),
        "one-sided": FirstOrder(0.02, central=False),
    }
    assert set(expected) == set(get_args(EngineName))
    for name, engine in expected.items():
        assert make_engine(name, 0.02) == engine
    assert expected["one-sided"].reuses_slopes
    assert not any(expected[n].reuses_slopes for n in ("exact", "tesla", "first-order"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_checkpointed_gradients_equal_plain_ones(arch: str, tiny_folder: Folder) -> None:
    config = ModelConfig(model=str(tiny_folder(arch)), dtype="float64", lora_rank=2)
    plain = load_model(config)
    checkpointed = load_model(replace(config, gradient_checkpointing=True))
    recomputed: list[int] = []
    checkpointed.hf.get_submodule(FIRST_LAYER[arch]).register_forward_pre_hook(
        lambda *_: recomputed.append(1)
    )
    theta = plain.fresh_theta(3)
    theta = theta + 0.05 * torch.sin(torch.arange(plain.size, dtype=theta.dtype))  # B is not 0
    vectors = vectors_of(plain)
    expected = plain.value_and_grad(theta, batch_of(1), vectors, in_vectors=True)
    found = checkpointed.value_and_grad(theta, batch_of(1), vectors, in_vectors=True)
    assert len(recomputed) == 2  # the forward pass, and once more in the backward pass
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        checkpointed.loss_at(theta, batch_of(1), vectors)


def test_a_difference_has_the_fast_attention_and_a_double_backward_the_one_that_has_it(
    tiny_folder: Folder,
) -> None:
    """SDPA chooses its kernel: a fused one where nothing is differentiated twice."""
    model = load_model(ModelConfig(str(tiny_folder("llama")), device="cpu", lora_rank=2))
    theta, vectors = model.fresh_theta(3) + 0.01, vectors_of(model)
    loss = EmbeddingLoss(model, batch_of(1), vectors)
    known = loss.slopes(theta, learnables=True)
    seen: list[str] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for engine in (FirstOrder(1e-3), FirstOrder(1e-3, central=False), Exact()):
        seen.clear()
        with Noting():
            engine(loss, theta, torch.cos(theta), known)
        fused = any("flash_attention" in name for name in seen)
        assert fused is isinstance(engine, FirstOrder)


def test_a_difference_is_the_same_under_checkpointing(tiny_folder: Folder) -> None:
    config = ModelConfig(str(tiny_folder("llama")), dtype="float64", device="cpu", lora_rank=2)
    expected, found = (
        Problem(load_model(replace(config, gradient_checkpointing=on)), 0.1, 2).by(FirstOrder(1e-4))
        for on in (False, True)
    )
    torch.testing.assert_close(found.vectors, expected.vectors)
