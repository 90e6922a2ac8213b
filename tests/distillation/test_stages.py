"""The stages before learning: which data and seeds they rest on, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from nacd.config import DataConfig, DistillConfig, ExpertConfig, SelectionConfig
from nacd.config.budget import parse_budget
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, Splits
from nacd.distillation.learn import make_starts
from nacd.distillation.stages import checked_engine, open_run, recorded_experts
from nacd.errors import UserError
from nacd.meta import Exact
from nacd.model.lora import LoraModel, ModelConfig
from nacd.model.prepare import Prepared, prepare
from nacd.selection import Task, choose_once
from nacd.selection.less import warm_up
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import EXPERT_SEED, LEARNING_SEED

QUIET = Progress(quiet=True)
RECIPE = Recipe(batch_size=2, epochs=1)


def example(number: int, **changes: Any) -> Example:
    turns = (Message("user", f"Name the thing {number}"), Message("assistant", f"{number}"))
    return Example(**{"messages": turns, "source": f"rows:{number}"} | changes)


ROWS = [example(i) for i in range(12)]
SPLITS = Splits(ROWS[:8], [example(20)], [example(30)], [example(40)])


@pytest.fixture
def prepared(tiny_folder: Callable[[str], Path]) -> Prepared:
    model = ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=1)
    return prepare(model, DataConfig(data="rows", template="qa"), splits=SPLITS)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": (Message("user", "Name the thing 3"), Message("assistant", "3", train=False))},
        {"choices": ("3", "4"), "answer": 0},
        {"group": "numbers"},
        {"verbatim": True},
    ],
)
def test_what_a_digest_leaves_out_is_held_too(changes: dict[str, Any], tmp_path: Path) -> None:
    """Other labels, choices, groups or forms of the same texts are other data."""
    config = DistillConfig(out=tmp_path / "run", data=DataConfig(data="rows"))
    folder = open_run(config, SPLITS)
    (folder.path / "seeds.json").write_text("{}")  # it has made something
    open_run(config, SPLITS)
    other = replace(SPLITS, train=[*ROWS[:3], example(3, **changes), *ROWS[4:8]])
    assert [e.digest for e in other.train] == [e.digest for e in SPLITS.train]
    with pytest.raises(UserError, match=r"the data has changed since this run began \(train rows"):
        open_run(config, other)
    file = folder.path / "provenance.json"
    older = json.loads(file.read_text())
    assert older["arithmetic"]["float32_products"] == "full"
    del older["marks"], older["seal"]
    file.write_text(json.dumps(older))
    open_run(config, other)  # a folder of an older version did not say


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The LoRA seeds that trainings start from."""
    found: list[int] = []
    fresh = LoraModel.fresh_theta

    def seen(self: LoraModel, seed: int) -> Tensor:
        found.append(seed)
        return fresh(self, seed)

    monkeypatch.setattr(LoraModel, "fresh_theta", seen)
    return found


def test_experts_do_not_start_where_the_table_does(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[int]
) -> None:
    """A student that learns starts at its expert's own values: the table's must be others."""
    plan = SimpleNamespace(describe=lambda: "")
    monkeypatch.setattr("nacd.distillation.stages.plan_experts", lambda *_: plan)
    experts = ExpertConfig(experts=2, expert_batch=4)
    config = DistillConfig(seed=2, budget="4", recipe=RECIPE, expert=experts)
    found = recorded_experts(config, prepared, RunFolder(tmp_path), QUIET)
    assert starts == [expert.seed for expert in found] == [EXPERT_SEED + 200, EXPERT_SEED + 201]
    # one that an older version began goes on with the seed that it has
    again = recorded_experts(replace(config, seed=3), prepared, RunFolder(tmp_path), QUIET)
    assert [expert.seed for expert in again] == [EXPERT_SEED + 200, EXPERT_SEED + 201]


def test_a_warm_up_does_not_start_where_the_table_does(
    prepared: Prepared, tmp_path: Path, starts: list[int]
) -> None:
    selection = SelectionConfig(warmup_share=0.5, warmup_epochs=2)
    warm_up(Task(prepared, RECIPE, selection, 3, tmp_path, QUIET))
    assert starts == [LEARNING_SEED + 3]


def test_chosen_rows_that_are_others_now_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    """Their numbers alone would silently name other rows."""
    folder = RunFolder(tmp_path)
    task = Task(prepared, RECIPE, SelectionConfig(), 0, tmp_path, QUIET, parse_budget("3"))
    found = choose_once(folder, "seeds", task, "random")
    assert choose_once(folder, "seeds", task, "random") == found
    part = prepared.train
    for other in (
        replace(part, examples=part.examples[1:], rows=part.rows[1:]),
        replace(part, examples=part.examples[:2], rows=part.rows[:2]),
    ):
        fewer = replace(task, prepared=replace(prepared, train=other))
        with pytest.raises(
            UserError, match=r"seeds\.json: the training rows .* others now .*--out"
        ):
            choose_once(folder, "seeds", fewer, "random")


def test_sixteen_bits_take_the_double_backward_and_say_so(
    tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(str(tiny_folder("gpt2")), dtype="bfloat16", device="cpu", lora_rank=1)
    data = DataConfig(data="rows", template="qa")
    config = DistillConfig(budget="4", recipe=RECIPE, model=model, data=data)
    low = prepare(model, data, splits=SPLITS)
    seeds = make_starts(low, [0, 1, 2, 3], config.outer.learn)
    engine = checked_engine(config, low, seeds, RECIPE, RunFolder(tmp_path), Progress())
    assert engine == Exact()
    shown = capsys.readouterr().err.splitlines()
    (said,) = [line for line in shown if "meta-gradient engine" in line]
    assert re.search(r"exact \(cosine 0\.9\d+, error \S+ to the same weights in float32\)$", said)
