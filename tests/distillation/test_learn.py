"""What the outer loop keeps as best, by what it saw on validation rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.data import Example, Message, Splits
from nacd.distillation.candidates import make_projection
from nacd.distillation.learn import Distiller, make_starts
from nacd.errors import UserError
from nacd.meta import make_engine
from nacd.model.lora import ModelConfig
from nacd.model.prepare import prepare
from nacd.store.files import read_tensors, write_tensors
from nacd.store.tracking import silent
from nacd.terminal.progress import Progress


class Outer:
    """An outer loop whose vectors, tokens and rate say at which step they are."""

    def __init__(self) -> None:
        self.done = 0
        self.projection = SimpleNamespace(tokens=lambda: torch.tensor([self.done]))

    @property
    def learning_rate(self) -> float:
        return math.exp(float(self.log_rate))

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
    distiller.progress, distiller.pool = Progress(quiet=True), None
    distiller.config = OuterLoopConfig(objective="trajectory", outer_steps=steps, check_every=2)
    distiller.segments = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    starts: Any = SimpleNamespace(pseudo=SimpleNamespace(ids=torch.tensor([0])))
    distiller.starts = starts

    def check(_: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
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
    assert found.soft_step == 2
    assert found.soft_learning_rate == pytest.approx(3e-3), "the rate that these were seen at"
    assert found.last_ids.tolist() == [5]
    assert found.last_learning_rate == pytest.approx(6e-3)
    looks = [row["outer_step"] for row in found.metrics if "development_text" in row]
    assert looks == [0, 2, 4, 5]
    assert found.metrics[0]["seconds"] > 0, "the first look takes its time, too"


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
    assert (found.soft_step, found.soft_learning_rate) == (2, pytest.approx(3e-3))
    assert found.last_learning_rate == pytest.approx(7e-3)
    assert [row["outer_step"] for row in found.metrics] == [*range(7)]


def test_a_state_of_an_older_version_goes_on_where_the_rate_was_fixed(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.5, 2.6], [3.0, 2.2, 2.5, 2.7]
    make(tmp_path, *losses, 3).run()
    file = tmp_path / "state.safetensors"
    state, _ = read_tensors(file)
    newer = {"best.soft_log_rate", "best.last_log_rate"}
    write_tensors(file, {name: t for name, t in state.items() if name not in newer})
    kept = file.read_bytes()
    assert make(tmp_path, *losses, 4).run().soft_learning_rate == pytest.approx(3e-3)
    file.write_bytes(kept)
    learned = make(tmp_path, *losses, 4)
    learned.config = replace(learned.config, rate_step_size=0.1)
    with pytest.raises(UserError, match=r"state\.safetensors: an older version made it.*--out"):
        learned.run()


def test_seeds_on_which_training_diverges_stop_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows diverges at --learning-rate 0\.001: .* is nan"):
        make(tmp_path, [3.0], [math.nan], 4).run()
    assert not any(tmp_path.iterdir())


def test_looks_that_are_no_number_are_null_and_never_best(tmp_path: Path) -> None:
    soft, text = [math.nan, math.inf, 2.0, math.nan], [3.0, math.nan, 2.0, math.inf]
    found = make(tmp_path, soft, text, 6).run()
    assert (found.best_step, found.soft_step, found.ids.tolist()) == (4, 4, [4])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    looks = [
        (r["development_soft"], r["development_text"]) for r in rows if "development_text" in r
    ]
    assert looks == [(None, 3.0), (None, None), (2.0, 2.0), (None, None)]
    again = make(tmp_path, soft, text, 6).run()
    assert (again.best_step, again.soft_step) == (4, 4)


def test_a_look_at_the_start_is_one_at_the_seeds(tmp_path: Path) -> None:
    """Whatever the projection reads out: the starting rows are what a text is held against."""
    distiller = make(tmp_path, [3.0, 3.0], [3.0, 3.0], 0)
    seen: list[list[int]] = []
    check = distiller.check

    def looked(ids: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
        seen.append(ids.tolist())
        return check(ids)

    distiller.check = looked  # pyright: ignore[reportAttributeAccessIssue]
    outer: Any = distiller.outer
    outer.projection.tokens = lambda: torch.tensor([77])
    distiller.run()
    assert seen == [[0]]


def test_more_candidates_than_tokens_are_refused() -> None:
    data: Any = SimpleNamespace(ids=torch.tensor([3]))
    allowed = torch.tensor([False, True, True, True])
    outer = OuterLoopConfig(candidates=4)
    with pytest.raises(UserError, match=r"--candidates 4: only 3 tokens .* at most as many"):
        make_projection(cast(Any, None), data, outer, allowed)


@pytest.mark.parametrize("projection", ["nearest", "straight-through"])
def test_learning_starts_at_the_seeds_whatever_they_are_made_of(
    projection: Any, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Bytes of characters are no tokens to choose, but they are the starting rows' own."""
    turns = [(f"Naïve — 你好 {i}?", "a fox") for i in range(3)]
    rows = [
        Example((Message("user", user), Message("assistant", reply)), f"rows:{i}")
        for i, (user, reply) in enumerate(turns)
    ]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=1)
    splits = Splits(rows, rows[:1], rows[:1], rows[:1])
    prepared = prepare(model, DataConfig(data="rows", template="qa"), splits=splits)
    starts = make_starts(prepared, [0, 1, 2], "prompt")
    config = DistillConfig(outer=OuterLoopConfig(objective="target-loss", projection=projection))
    quiet = Progress(quiet=True)
    engine = make_engine("exact", 1e-3)
    distiller = Distiller(config, prepared, starts, config.recipe, engine, [], tmp_path, quiet)
    assert not bool(distiller.allowed[starts.pseudo.ids].all())
    assert torch.equal(distiller.outer.projection.tokens(), starts.pseudo.ids)
    assert torch.equal(distiller.outer.vectors(), prepared.model.embed(starts.pseudo.ids).float())
