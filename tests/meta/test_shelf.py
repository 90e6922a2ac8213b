"""Gradients that a sweep keeps off the device come back as they went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_engines import Problem

from nacd.meta import FirstOrder, meta_gradient
from nacd.meta.engines import Slopes
from nacd.meta.shelf import SHARE, Shelf, short
from nacd.model.lora import ModelConfig, load_model


@pytest.mark.parametrize("central", [True, False])
def test_a_sweep_is_the_same_to_the_bit(
    central: bool, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off the device is another place of the same memory here."""
    model = load_model(ModelConfig(str(tiny_folder("llama")), device="cpu", lora_rank=2))
    loop, start, batches, log_rate, vectors = Problem(model, 0.3, 4).common
    moved: list[bool] = []
    put = Shelf.put

    def watched(self: Shelf, slopes: Slopes) -> None:
        put(self, slopes)
        moved.append(self._kept[-1].theta.data_ptr() != slopes.theta.data_ptr())

    monkeypatch.setattr(Shelf, "put", watched)

    def found(away: bool | None) -> list[torch.Tensor]:
        def objective(theta: torch.Tensor) -> tuple[float, torch.Tensor]:
            return float((theta**2).sum()), 2 * theta

        common = (loop, start, batches, log_rate, vectors, objective)
        swept = meta_gradient(*common, FirstOrder(1e-3, central), away=away)
        return [swept.vectors, swept.theta, swept.log_rate, swept.end]

    assert all(map(torch.equal, found(True), found(None)))
    assert moved == [True] * 4 + [False] * 4


def test_a_card_whose_memory_is_short_is_relieved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacd.meta.shelf.free_memory", lambda device: 1000)
    card, most = torch.device("cuda"), int(SHARE * 1000)
    assert not short(card, most)
    assert short(card, most + 1)
    assert not short(torch.device("cpu"), 10**12)
    shelf = Shelf(3)
    shelf.put(Slopes(torch.zeros(()), torch.zeros(9), ()))
    assert shelf.away is False
