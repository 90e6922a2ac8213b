"""Short products that a caller has allowed are off inside, and as they were afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data.batches import collate
from nacd.data.example import Encoded
from nacd.meta import FirstOrder, meta_gradient, unvisited
from nacd.meta.engines import Slopes
from nacd.meta.objectives import trajectory_objective
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.precision import full_precision, in_force
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state

CPU = torch.device("cpu")
WIDE = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def newer(where: Any, value: str) -> Callable[[], None]:
    return lambda: setattr(where, "fp32_precision", value)


CALLERS: dict[str, Callable[[], None]] = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
}
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    CALLERS["newer"] = newer(torch.backends.cuda.matmul, "tf32")


def state() -> list[Any]:
    matmul: Any = torch.backends.cuda.matmul
    newest = getattr(matmul, "fp32_precision", None)
    return [in_force(), newest, matmul.allow_bf16_reduced_precision_reduction]


@pytest.mark.parametrize("caller", [*CALLERS])
def test_what_a_caller_set_is_off_inside_and_back_afterwards(caller: str) -> None:
    CALLERS[caller]()
    before = state()
    assert before[0]["float32_products"] != "full"
    with full_precision(CPU):
        assert in_force() == dict.fromkeys(before[0], "full")
    assert state() == before
    with contextlib.suppress(ZeroDivisionError), full_precision(CPU):
        raise ZeroDivisionError
    assert state() == before


def test_autocast_is_off_inside() -> None:
    exact = WIDE @ WIDE.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert in_force()["autocast"] == "bfloat16"
        with full_precision(CPU):
            assert in_force()["autocast"] == "full"
            assert torch.equal(WIDE @ WIDE.T, exact)
        assert (WIDE @ WIDE.T).dtype == torch.bfloat16


class Case:
    """A tiny model, two batches of plain rows, and an inner loop through both."""

    def __init__(self, folder: Path):
        config = ModelConfig(str(folder), device="cpu", lora_rank=2)
        self.model: LoraModel = load_model(config)
        recipe = Recipe(optimizer="sgd", learning_rate=0.3, warmup=0.0, schedule="constant")
        self.loop = InnerLoop(self.model, recipe, 2)
        theta = self.model.fresh_theta(3)
        theta = theta + 0.05 * torch.sin(torch.arange(self.model.size, dtype=theta.dtype))
        self.start = Start(theta, initial_state(recipe, theta))
        self.log_rate = torch.tensor(0.3).log()
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, 290, (8, 12), generator=generator).tolist()
        rows = [Encoded(tuple(row), (False,) * 6 + (True,) * 6, (0, 6)) for row in ids]
        self.batches = [collate(rows[i : i + 4], 0) for i in (0, 4)]
        self.objective = trajectory_objective(theta, theta.roll(1))

    def learnable(self, central: bool) -> Tensor:
        """The gradient in the embeddings of the first batches' prompts."""
        vectors, batches = [], []
        for batch in self.batches:
            slots = torch.full_like(batch.ids, -1)
            slots[:, 1:6] = torch.arange(20).view(4, 5) + 20 * len(batches)
            vectors.append(self.model.embed(batch.ids[:, 1:6]).flatten(0, 1))
            batches.append(type(batch)(batch.ids, batch.attention, batch.response, slots))
        common = (self.loop, self.start, batches, self.log_rate, torch.cat(vectors))
        return meta_gradient(*common, self.objective, FirstOrder(1e-3, central)).vectors

    def weights(self) -> Tensor:
        """The worth of rows that the training does not visit."""
        common = (self.loop, self.start, self.batches, self.log_rate, self.objective)
        _, found = unvisited(*common, FirstOrder(1e-3), {1: [self.batches[0]]}, eps=1e-3)
        return found[1]


@pytest.fixture(scope="module")
def case(tiny_folder: Callable[[str], Path]) -> Case:
    return Case(tiny_folder("llama"))


class Noted:
    """A loss that notes what products its gradients are taken with."""

    learnables = (torch.zeros(1),)

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def slopes(self, theta: Tensor, *, learnables: bool) -> Slopes:
        self.seen.append(in_force())
        return Slopes(theta.sum(), theta, (torch.zeros(1),))


@pytest.mark.parametrize("central", [True, False])
def test_a_difference_is_taken_in_full_precision(central: bool) -> None:
    """On a processor whose float32 products cannot be made shorter, too."""
    torch.set_float32_matmul_precision("medium")
    loss, theta = Noted(), torch.ones(3)
    FirstOrder(1e-3, central)(loss, theta, theta, Slopes(theta.sum(), theta, loss.learnables))
    assert len(loss.seen) == 1 + central
    assert all({*seen.values()} == {"full"} for seen in loss.seen)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("kind", ["one-sided", "first-order", "unvisited"])
def test_a_difference_equals_the_one_in_float32(kind: str, case: Case) -> None:
    def found() -> Tensor:
        return case.weights() if kind == "unvisited" else case.learnable(kind == "first-order")

    expected = found()
    torch.set_float32_matmul_precision("medium")
    short = found()
    assert torch.get_float32_matmul_precision() == "medium"
    # the forward sweep of a central difference is an ordinary training, short products and all
    torch.testing.assert_close(short, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    if kind == "one-sided":
        assert torch.equal(short, expected)
