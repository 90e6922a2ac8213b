"""What the outer loop keeps as best, by what it saw on development rows."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nacd.config import OuterLoopConfig
from nacd.learn import Distiller
from nacd.progress import Progress
from nacd.tracking import silent


class Outer:
    """An outer loop whose vectors, tokens and rate say at which step they are."""

    def __init__(self) -> None:
        self.done = 0

    def vectors(self) -> torch.Tensor:
        return torch.full((1, 2), float(self.done))

    @property
    def log_rate(self) -> torch.Tensor:
        return torch.tensor(math.log(1e-3 * (1 + self.done)), dtype=torch.float64)

    def step(self, _: Any) -> dict[str, float]:
        self.done += 1
        return {"objective": 1.0}

    def state(self) -> dict[str, torch.Tensor]:
        return {"done": torch.tensor(self.done)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.done = int(state["done"])


def make(folder: Path, soft: list[float], text: list[float], steps: int) -> Distiller:
    """A distiller that sees these losses at outer steps 0, 2, 4, ... and at its last."""
    distiller = Distiller.__new__(Distiller)
    outer: Any = Outer()
    distiller.outer, distiller.folder, distiller.log = outer, folder, silent
    distiller.progress = Progress(quiet=True)
    distiller.config = OuterLoopConfig(objective="trajectory", outer_steps=steps, check_every=2)
    distiller.segments = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    seeds: Any = SimpleNamespace(pseudo=SimpleNamespace(ids=torch.tensor([0])))
    distiller.seeds = seeds

    def check() -> tuple[dict[str, float], torch.Tensor]:
        at = math.ceil(outer.done / 2)
        seen = {"development_soft": soft[at], "development_text": text[at]}
        return seen, torch.tensor([outer.done])

    distiller.check = check  # pyright: ignore[reportAttributeAccessIssue]
    return distiller


def test_text_and_vectors_are_each_their_own_best(tmp_path: Path) -> None:
    found = make(tmp_path, [3.0, 2.0, 2.5, 2.0], [3.0, 2.9, 2.5, 2.7], 5).run()
    assert (found.ids.tolist(), found.best_step) == ([4], 4)
    assert found.learning_rate == pytest.approx(5e-3), "the rate that the best text was seen at"
    assert found.soft.tolist() == [[2.0, 2.0]], "of two alike the earlier"
    assert found.last_ids.tolist() == [5]
    looks = [row["outer_step"] for row in found.metrics if "development_text" in row]
    assert looks == [0, 2, 4, 5]


def test_no_text_better_than_the_seeds_leaves_the_seeds(tmp_path: Path) -> None:
    found = make(tmp_path, [3.0, 2.0, 1.0], [3.0, 3.0, 3.1], 4).run()
    assert (found.ids.tolist(), found.best_step, found.learning_rate) == ([0], 0, 1e-3)
    assert (found.soft.tolist(), found.last_ids.tolist()) == ([[4.0, 4.0]], [4])


def test_a_run_goes_on_with_its_best(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.5, 2.6], [3.0, 2.2, 2.5, 2.7]
    make(tmp_path, *losses, 3).run()
    found = make(tmp_path, *losses, 6).run()
    assert (found.ids.tolist(), found.best_step) == ([2], 2)
    assert found.soft.tolist() == [[2.0, 2.0]]
    assert found.learning_rate == pytest.approx(3e-3)
    assert [row["outer_step"] for row in found.metrics] == [*range(7)]
