"""A recipe that cannot train is refused by its flag, wherever a training would start."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

import nacd
from nacd.commands.select import SelectConfig
from nacd.commands.target import TrainConfig
from nacd.config import (
    DataConfig,
    DistillConfig,
    ExpertConfig,
    OuterLoopConfig,
    ReadConfig,
)
from nacd.config.budget import parse_budget
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.rows import Rows
from nacd.errors import UserError
from nacd.experts import record_expert
from nacd.model.lora import ModelConfig, load_model
from nacd.model.prepare import prepare
from nacd.selection import Task, choose
from nacd.terminal.progress import Progress
from nacd.training.student import train_student

QUIET = Progress(quiet=True)
SCHEDULES = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "constant": get_constant_schedule_with_warmup,
}


def rates(recipe: Recipe, total: int) -> list[float]:
    """What transformers' own schedule trains with."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm = math.ceil(total * recipe.warmup)
    length = () if recipe.schedule == "constant" else (total,)
    schedule = SCHEDULES[recipe.schedule](optimizer, warm, *length)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_never_moves_is_refused_and_nothing_else(schedule: Any) -> None:
    for warmup in (0.0, 0.01, 0.1, 0.5, 0.99, 1.0):
        for total in (1, 2, 3, 7, 30):
            recipe = Recipe(schedule=schedule, warmup=warmup, steps=total)
            known = rates(recipe, total)
            assert [recipe.rate(k, total) for k in range(total)] == pytest.approx(known)
            if any(known):
                recipe.check_rows(5)
            else:
                with pytest.raises(UserError, match=f"--steps {total}: to the only step"):
                    recipe.check_rows(5)


@pytest.mark.parametrize(
    ("recipe", "rows", "message"),
    [
        (
            Recipe(batch_size=8, epochs=1),
            5,
            "--batch-size 8: 5 rows make 1 optimiser step, to which --warmup 0.1 gives a learning "
            "rate of 0: nothing is learned. Lower --batch-size, raise --epochs, or give --warmup "
            "0.",
        ),
        (
            Recipe(batch_size=8, epochs=1),
            1,
            "--batch-size 8: 1 rows make 1 optimiser step, to which --warmup 0.1 gives a learning "
            "rate of 0: nothing is learned. Raise --epochs, or give --warmup 0.",
        ),
        (
            Recipe(steps=1, warmup=1.0),
            99,
            "--steps 1: to the only step --warmup 1.0 gives a learning rate of 0: nothing is "
            "learned. Raise --steps, or give --warmup 0.",
        ),
    ],
)
def test_the_mend_is_right(recipe: Recipe, rows: int, message: str) -> None:
    with pytest.raises(UserError) as raised:
        recipe.check_rows(rows)
    assert str(raised.value) == message


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "field",
    [
        "learning_rate",
        "epochs",
        "clip",
        "weight_decay",
        "momentum",
        "beta1",
        "beta2",
        "eps",
        "root_eps",
        "warmup",
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(field: str, value: float) -> None:
    flag = "--" + field.replace("_", "-")
    with pytest.raises(UserError, match=f"{flag} {value}"):
        replace(Recipe(), **{field: value}).check()


@pytest.mark.parametrize(
    "changes",
    [{"momentum": 1.0}, {"beta1": 1.0}, {"beta2": 1.0}, {"steps": -1}, {"batch_size": 0}],
)
def test_the_ends_of_ranges(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--"):
        replace(Recipe(), **changes).check()
    Recipe(clip=0.0, eps=0.0, beta1=0.0, warmup=1.0, steps=3, epochs=0.0).check()


@pytest.mark.parametrize("budget", ["inf", "inft", "inf%", "nan", "-inf"])
def test_a_budget_is_finite(budget: str) -> None:
    with pytest.raises(UserError, match=rf"--budget {budget}: "):
        parse_budget(budget)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune_rates": (1e-3, 0.0)}, "--tune-rates 0.0: must be above 0"),
        ({"tune": True, "tune_rates": (1e-3,)}, "drop --tune-rates"),
        ({"tune": True, "recipe": Recipe(steps=5)}, "--steps 5: --tune finds the number of epochs"),
        ({"full_epochs": 0.0}, "--full-epochs 0.0: must be above 0"),
        ({"outer": OuterLoopConfig(fd_eps=0.0)}, "--fd-eps 0.0: must be above 0"),
        ({"outer": OuterLoopConfig(step_size=-1.0)}, "--step-size -1.0: must be at least 0"),
        ({"outer": OuterLoopConfig(beta=math.nan)}, "--beta nan: must be at least 0"),
        ({"outer": OuterLoopConfig(expert_ahead=-1)}, "--expert-ahead -1: must be at least 0"),
        ({"expert": ExpertConfig(expert_rate=math.inf)}, "--expert-rate inf: must be above 0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    config = replace(DistillConfig(data=DataConfig(data="rows.jsonl")), **changes)
    with pytest.raises(UserError, match=message):
        config.check()
    if not changes.keys() & {"outer", "expert"}:
        with pytest.raises(UserError, match=message):
            replace(nacd.CompareConfig(data=config.data), **changes).check()


# --- wherever a training starts ---------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [{"instruction": f"Name the thing, number {i}?", "output": f"{i}"} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


STILL = Recipe(batch_size=64, epochs=1)
"""One step, at rate 0."""
MOVES = Recipe(batch_size=2, epochs=1)


def started(
    what: str, model: ModelConfig, data: DataConfig, out: Path
) -> tuple[Callable[[], Any], str]:
    """A call that would train without moving, and how it is refused."""
    run = DistillConfig(out=out, budget="4", model=model, data=data, recipe=STILL)
    grid = nacd.CompareConfig(out=out, budgets=("4",), model=model, data=data, recipe=STILL)
    moving = replace(run, recipe=MOVES)
    matched = OuterLoopConfig(objective="trajectory")
    experts = ExpertConfig(expert_batch=64)
    return {
        "train": (
            lambda: nacd.fine_tune(
                TrainConfig(out, model=model, data=ReadConfig(data.data), recipe=STILL)
            ),
            "--batch-size 64: 40 rows",
        ),
        "distill": (lambda: nacd.distill(run, progress=QUIET), "--batch-size 64: 4 rows"),
        "the table's full": (
            lambda: nacd.distill(replace(moving, full_epochs=0.01), progress=QUIET),
            r"--full-epochs, or",
        ),
        "experts of distill": (
            lambda: nacd.distill(replace(moving, outer=matched, expert=experts), progress=QUIET),
            r"--expert-batch 64: .* raise --expert-epochs",
        ),
        "experts": (
            lambda: nacd.record_experts(replace(moving, expert=experts), progress=QUIET),
            r"--expert-batch 64: .* raise --expert-epochs",
        ),
        "doctor": (lambda: nacd.doctor(run), "--batch-size 64: 4 rows"),
        "select": (
            lambda: nacd.select(
                SelectConfig(out, "longest", "4", model=model, data=data, recipe=STILL),
                progress=QUIET,
            ),
            "--batch-size 64: 4 rows",
        ),
        "compare": (
            lambda: nacd.compare(replace(grid, methods=("random",)), progress=QUIET),
            "--batch-size 64: 4 rows",
        ),
        "compare's full": (
            lambda: nacd.compare(
                replace(grid, methods=("full",), recipe=MOVES, full_epochs=0.01), progress=QUIET
            ),
            r"--full-epochs, or",
        ),
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        "train",
        "distill",
        "the table's full",
        "experts of distill",
        "experts",
        "doctor",
        "select",
        "compare",
        "compare's full",
    ],
)
def test_a_training_that_never_moves_does_not_start(
    what: str, tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    model = ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=1)
    data = DataConfig(data=str(rows), target_rows=4, template="alpaca")
    call, message = started(what, model, data, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        call()
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_nor_does_one_below_the_commands(
    tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    config = ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=1)
    model = load_model(config)
    row = Encoded((5, 6, 7, 8), (False, False, True, True), (0, 2))
    with pytest.raises(UserError, match="--batch-size 64: 3 rows"):
        train_student(model, STILL, Rows.of([row] * 3, 0), 0)
    with pytest.raises(UserError, match="--expert-batch 64: 3 rows"):
        record_expert(
            model,
            [row] * 3,
            ["a", "b", "c"],
            STILL,
            seed=0,
            every=1,
            folder=tmp_path / "expert",
            pad_id=0,
        )
    prepared = prepare(config, DataConfig(data=str(rows), target_rows=4))
    for method in ("best-of", "trajectory"):
        task = Task(
            prepared,
            STILL,
            nacd.SelectionConfig(judge="target", tries=2),
            0,
            tmp_path / method,
            QUIET,
            parse_budget("4"),
        )
        with pytest.raises(UserError, match="--batch-size 64: 4 rows"):
            choose(task, method)
