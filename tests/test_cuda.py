"""The whole tool on a GPU, where there is one: on a CPU all tensors meet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nacd
from nacd.config import DataConfig, ExpertConfig, OuterLoopConfig, SelectionConfig
from nacd.config.budget import parse_budget
from nacd.config.compare import ROWS, CompareConfig
from nacd.config.recipe import Recipe
from nacd.model.lora import ModelConfig
from nacd.terminal.progress import Progress

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
QUIET = Progress(quiet=True)


@pytest.fixture
def config(tiny_folder: Callable[[str], Path], tmp_path: Path) -> CompareConfig:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Name thing {i}", "output": "red" * (1 + i % 3)} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CompareConfig(
        out=tmp_path / "grid",
        methods=ROWS,
        budgets=("4",),
        trainings=1,
        model=ModelConfig(str(tiny_folder("llama")), device="cuda", lora_rank=2),
        data=DataConfig(data=str(file), target_rows=6),
        recipe=Recipe(batch_size=2, epochs=2, learning_rate=5e-3, shuffle=False),
        expert=ExpertConfig(expert_steps=4, expert_batch=4, snapshot_every=2),
        outer=OuterLoopConfig(outer_steps=2, check_every=1, step_size=1.0),
        selection=SelectionConfig(
            tries=2, warmup_share=0.3, warmup_epochs=2, projection_dim=256, weight_passes=1
        ),
    )


def test_every_row_of_a_comparison(config: CompareConfig) -> None:
    found = nacd.compare(config, progress=QUIET).table
    assert not [row for row in found if "failed" in row]


@pytest.mark.parametrize("engine", ["exact", "first-order", "one-sided", "tesla"])
@pytest.mark.parametrize("projection", ["nearest", "straight-through", "simplex"])
def test_every_engine_and_projection(engine: str, projection: str, config: CompareConfig) -> None:
    outer = replace(config.outer, engine=engine, projection=projection, beta=0.1)
    run = replace(config.distillation(parse_budget("4"), 0), outer=outer, out=config.out / "run")
    assert nacd.distill(run, progress=QUIET).rows == 4


@pytest.mark.parametrize("objective", ["train-loss", "trajectory"])
def test_every_objective(objective: str, config: CompareConfig) -> None:
    outer = replace(config.outer, objective=objective, objective_rows=8, rate_step_size=0.01)
    run = replace(config.distillation(parse_budget("4"), 0), outer=outer, out=config.out / "run")
    assert nacd.distill(run, progress=QUIET).rows == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_checked(dtype: str, config: CompareConfig) -> None:
    model = replace(config.model, dtype=dtype)
    run = replace(config.distillation(parse_budget("4"), 0), model=model, out=config.out / "run")
    with contextlib.suppress(nacd.UserError):  # refused by the check, which has then run
        nacd.distill(run, progress=QUIET)
    assert (config.out / "run" / "doctor.json").is_file()
