"""Recorded trajectories against plain torch.optim loops, and what a killed run leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import get_scheduler

from float64 import float64_only
from nacd.config.recipe import Recipe
from nacd.data import Encoded, collate, training_order
from nacd.errors import UserError
from nacd.experts import Expert, open_expert, plan_experts, record_expert
from nacd.model.lora import LoraModel, ModelConfig, load_model
from tiny import ROWS

Folder = Callable[[str], Path]
RECIPES = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.3, steps=7, batch_size=4),
    "momentum": Recipe(
        optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.05, steps=7, batch_size=4
    ),
    "adamw": Recipe(learning_rate=5e-3, weight_decay=0.1, epochs=2, batch_size=4),
    "cosine": Recipe(learning_rate=5e-3, schedule="cosine", clip=0.0, epochs=2, batch_size=4),
    "constant": Recipe(learning_rate=5e-3, schedule="constant", clip=0.1, epochs=2, batch_size=4),
}


def random_rows(count: int = 10) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        length = int(torch.randint(6, 11, (), generator=generator))
        ids = torch.randint(5, ROWS - 10, (length,), generator=generator).tolist()
        rows.append(Encoded(tuple(ids), (False,) * (length - 3) + (True,) * 3, (1, 3)))
    return rows


ROWS_HERE = random_rows()
DIGESTS = [f"row-{i}" for i in range(len(ROWS_HERE))]


@pytest.fixture(scope="module")
def model(tiny_folder: Folder) -> LoraModel:
    return load_model(ModelConfig(model=str(tiny_folder("llama")), lora_rank=2, device="cpu"))


def record(model: LoraModel, folder: Path, **changes: Any) -> Expert:
    options: dict[str, Any] = {
        "rows": ROWS_HERE,
        "digests": DIGESTS,
        "recipe": RECIPES["adamw"],
        "seed": 3,
        "every": 2,
        "folder": folder,
        "pad_id": 0,
    }
    return record_expert(model, **(options | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- mathematics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_agrees_with_torch_optim(tiny_folder: Folder, tmp_path: Path, name: str) -> None:
    """The same training by transformers' loss, torch.optim and transformers' schedule."""
    recipe = RECIPES[name]
    config = ModelConfig(
        model=str(tiny_folder("llama")), dtype="float64", lora_rank=2, device="cpu"
    )
    model = load_model(config)
    with float64_only():
        expert = record(model, tmp_path / "expert", recipe=recipe, every=1)
        model.write(model.fresh_theta(3))
        parameters = [p for p in model.hf.parameters() if p.requires_grad]
        common: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, momentum=recipe.momentum, **common)
        else:
            optimizer = torch.optim.AdamW(parameters, **common)
        total = recipe.total_steps(len(ROWS_HERE))
        kind = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
        schedule = get_scheduler(kind, optimizer, -int(-total * recipe.warmup // 1), total)
        assert expert.steps == list(range(total + 1))
        assert expert.total == total
        assert expert.order == training_order(len(ROWS_HERE), recipe.batch_size, total, 3)
        for k in range(total):
            batch = collate([ROWS_HERE[i] for i in expert.order[k]], 0)
            labels = batch.ids.masked_fill(~batch.response, -100)
            loss = model.hf(input_ids=batch.ids, attention_mask=batch.attention, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            schedule.step()
            assert expert.losses[k] == pytest.approx(float(loss.detach()), rel=1e-12)
            found = expert.snapshot(k + 1)
            expected = torch.cat([p.detach().reshape(-1) for p in parameters])
            torch.testing.assert_close(found.theta, expected, rtol=1e-9, atol=1e-12)
            assert found.count == k + 1
    names = ("exp_avg", "exp_avg_sq") if recipe.optimizer == "adamw" else ("momentum_buffer",)
    last = expert.snapshot(total)
    assert len(last.state) == (2 if recipe.optimizer == "adamw" else int(recipe.momentum > 0))
    for part, key in zip(last.state, names, strict=False):
        expected = torch.cat([optimizer.state[p][key].reshape(-1) for p in parameters])
        torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-12)


def test_first_snapshot_is_the_fresh_theta(model: LoraModel, tmp_path: Path) -> None:
    expert = record(model, tmp_path / "expert")
    start = expert.snapshot(0)
    assert expert.steps == [0, 2, 4, 6]
    assert torch.equal(start.theta, model.fresh_theta(3))
    assert all(not part.any() for part in start.state)
    assert expert.seed == 3
    assert expert.digests == DIGESTS
    assert expert.recipe == RECIPES["adamw"]
    with pytest.raises(ValueError, match="no snapshot at step 3"):
        expert.snapshot(3)


def test_the_last_step_has_a_snapshot(model: LoraModel, tmp_path: Path) -> None:
    expert = record(model, tmp_path / "expert", every=4)
    assert expert.steps == [0, 4, 6]
    assert len(expert.losses) == 6


def test_held_out_loss_at_every_snapshot(model: LoraModel, tmp_path: Path) -> None:
    batch = collate(ROWS_HERE[:3], 0)

    def held_out(theta: Tensor) -> float:
        nll, tokens = model.row_nll(theta, batch)
        return float(nll.sum() / tokens.sum())

    expert = record(model, tmp_path / "a", held_out=held_out)
    assert list(expert.held_out) == expert.steps
    plain = record(model, tmp_path / "b")
    assert plain.held_out == {}
    assert torch.equal(plain.snapshot(6).theta, expert.snapshot(6).theta)


# --- going on ------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kill_at(step: int) -> Callable[[int, int, float], None]:
    def progress(done: int, _total: int, _loss: float) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_killed_run_goes_on_with_the_same_bits(
    model: LoraModel, tmp_path: Path, name: str
) -> None:
    recipe = RECIPES[name]
    whole = record(model, tmp_path / "whole", recipe=recipe)
    for step in (1, 2, 3, 5):
        with pytest.raises(Killed):
            record(model, tmp_path / "killed", recipe=recipe, progress=kill_at(step))
    seen: list[int] = []
    record(
        model,
        tmp_path / "killed",
        recipe=recipe,
        progress=lambda done, total, _loss: seen.append(done),
    )
    assert seen[0] == 5  # from the snapshot of step 4
    assert seen[-1] == whole.total
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_killed_between_a_snapshot_and_the_manifest(model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        record(model, folder, progress=kill_at(3))
    record(model, tmp_path / "whole")
    (folder / "step-00004.safetensors").write_bytes(b"not named by the manifest")
    (folder / ".step-00004.safetensors.partial-99").write_bytes(b"half")
    record(model, folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_killed_before_the_first_manifest(model: LoraModel, tmp_path: Path) -> None:
    record(model, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "order.json", folder)
    record(model, folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_expert_is_left_alone(model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    record(model, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    record(model, folder, progress=kill_at(1))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_snapshot_is_named_and_made_again(
    model: LoraModel, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "expert"
    expert = record(model, folder)
    before = contents(folder)
    path = folder / "step-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.unlink() if how == "gone" else path.write_bytes(data if how == "flipped" else data[:99])
    with pytest.raises(UserError, match=r"step-00002\.safetensors: (damaged|gone)"):
        expert.snapshot(2)
    assert expert.snapshot(4).count == 4
    seen: list[int] = []
    record(model, folder, progress=lambda done, _total, _loss: seen.append(done))
    assert seen[0] == 1  # from step 0, the last whole one before it
    assert contents(folder) == before


def test_a_damaged_order_is_named_and_made_again(model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    record(model, folder)
    before = contents(folder)
    (folder / "order.json").write_text("{")
    with pytest.raises(UserError, match=r"order\.json: damaged or gone"):
        open_expert(folder)
    record(model, folder)
    assert contents(folder) == before


# --- refusals ------------------------------------------------------------------------------------


def test_another_configuration_is_refused(model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    record(model, folder)
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        record(model, folder, recipe=replace(RECIPES["adamw"], learning_rate=0.5), seed=4)
    message = str(caught.value)
    assert "--expert-rate 0.005 there, 0.5 here" in message
    assert "--seed 3 there, 4 here" in message
    assert "--out" in message
    assert "row indices" not in message  # follows from the seed
    with pytest.raises(UserError, match="--snapshot-every 2 there, 3 here"):
        record(model, folder, every=3)
    assert contents(folder) == before


def test_other_rows_are_refused(model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    record(model, folder)
    with pytest.raises(UserError, match="--data of 10 rows there, of 9 rows here"):
        record(model, folder, rows=ROWS_HERE[:9], digests=DIGESTS[:9])
    with pytest.raises(UserError, match=r"--data of hash .* there, of hash .* here"):
        record(model, folder, digests=[*DIGESTS[:9], "another"])
    with pytest.raises(UserError, match="same rows there and here, but in another order"):
        record(model, folder, rows=ROWS_HERE[::-1], digests=DIGESTS[::-1])
    turned = [Encoded(r.ids[::-1], r.response, r.prompt) for r in ROWS_HERE]
    with pytest.raises(UserError, match=r"--template of hash .* there"):
        record(model, folder, rows=turned)


def test_another_order_of_the_steps_is_refused(
    model: LoraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shuffle that another version of a library makes differently."""
    folder = tmp_path / "expert"
    record(model, folder)
    monkeypatch.setattr(
        "nacd.experts.record.training_order", lambda *args: training_order(*args)[::-1]
    )
    with pytest.raises(UserError, match="row indices of the steps"):
        record(model, folder)


def test_another_lora_is_refused(tiny_folder: Folder, model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    record(model, folder)
    other = load_model(
        ModelConfig(
            model=str(tiny_folder("llama")),
            lora_rank=4,
            lora_targets=("q_proj", "v_proj"),
            device="cpu",
        )
    )
    with pytest.raises(UserError) as caught:
        record(other, folder)
    assert "--lora-rank 2 there, 4 here" in str(caught.value)
    assert "--lora-targets all-linear there, q_proj v_proj here" in str(caught.value)


def test_a_damaged_manifest_is_named(model: LoraModel, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    record(model, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for text in ("{", "[]", json.dumps({k: manifest[k] for k in ("format", "state")})):
        path.write_text(text)
        for call in (lambda: open_expert(folder), lambda: record(model, folder)):
            with pytest.raises(UserError, match=r"manifest\.json: damaged"):
                call()


def test_a_manifest_may_not_name_a_file_elsewhere(model: LoraModel, tmp_path: Path) -> None:
    record(model, tmp_path / "e")
    manifest = tmp_path / "e" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step-00000', '"../step-00000'))
    with pytest.raises(UserError, match=r"manifest\.json: damaged .*leads out of the folder"):
        open_expert(tmp_path / "e")


def test_mistakes_are_user_errors(model: LoraModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--snapshot-every 0"):
        record(model, tmp_path / "a", every=0)
    with pytest.raises(UserError, match="--data"):
        record(model, tmp_path / "a", rows=[], digests=[])
    with pytest.raises(UserError, match=r"no manifest\.json there"):
        open_expert(tmp_path / "a")
    wild = replace(RECIPES["sgd"], learning_rate=1e30, clip=0.0)
    with pytest.raises(UserError, match="--expert-rate 1e\\+30"):
        record(model, tmp_path / "b", recipe=wild)


# --- the plan ------------------------------------------------------------------------------------


def test_plan_counts_bytes_and_trainings(model: LoraModel, tmp_path: Path) -> None:
    recipe = RECIPES["adamw"]
    third = len(ROWS_HERE) // 3
    plan = plan_experts(
        model, ROWS_HERE, recipe, every=2, count=2, student=recipe, student_rows=third
    )
    assert (plan.full_steps, plan.student_steps) == (6, 2)
    record(model, tmp_path / "expert")
    size = sum(path.stat().st_size for path in (tmp_path / "expert").glob("*.safetensors"))
    assert size <= plan.size / 2 < 1.1 * size
    assert plan.steps == 6
    assert plan.step_seconds > 0
    assert plan.seconds == pytest.approx(12 * plan.step_seconds)
    assert plan.pays_back == 3  # 12 steps spent, 4 saved a training
    lines = plan.describe().splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    long = replace(
        plan,
        count=100,
        steps=10**5,
        full_steps=10**5,
        student_steps=5000,
        step_seconds=0.0123,
        student_step_seconds=0.0123,
        distill_seconds=9e5,
    )
    assert all(len(line) <= 80 for line in long.describe().splitlines())
    learned = replace(plan, distill_seconds=5 * plan.student_step_seconds)
    assert learned.pays_back == 5  # 17 steps spent
    small = replace(recipe, batch_size=recipe.batch_size // 2)
    other = plan_experts(
        model, ROWS_HERE, recipe, every=2, count=1, student=small, student_rows=third
    )
    assert other.student_step_seconds == pytest.approx(other.step_seconds / 2)
    never = replace(plan, student_steps=6)
    assert never.pays_back is None
    assert "never repaid" in never.describe()
    with pytest.raises(UserError, match="--experts 0"):
        plan_experts(model, ROWS_HERE, recipe, every=2, count=0, student=recipe, student_rows=third)
