"""A Trainer's checkpoints as an expert."""

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

from nacd.config.recipe import Recipe
from nacd.errors import UserError
from nacd.experts import import_checkpoints, open_expert, read_adapter
from nacd.model.lora import LoraModel, ModelConfig, adapter_folder, load_model

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tiny_folder: Folder) -> LoraModel:
    return load_model(ModelConfig(model=str(tiny_folder("llama")), lora_rank=2, device="cpu"))


def write_run(
    model: LoraModel, folder: Path, optimizer: torch.optim.Optimizer | None = None
) -> dict[int, Tensor]:
    """Three checkpoints as the Trainer writes them, the steps unlike in alphabetical order."""
    thetas = {}
    for step in (5, 10, 100):
        path = folder / f"checkpoint-{step}"
        generator = torch.Generator().manual_seed(step)
        thetas[step] = torch.randn(model.size, generator=generator)
        adapter_folder(model, thetas[step], path)
        history: list[dict[str, Any]] = [
            {"step": s, "loss": 1.0 + s} for s in range(5, step + 1, 5)
        ]
        history.append({"step": step, "eval_loss": 0.5 * step})
        (path / "trainer_state.json").write_text(
            json.dumps(
                {
                    "global_step": step,
                    "max_steps": 120,
                    "train_batch_size": 6,
                    "log_history": history,
                }
            )
        )
        if optimizer is not None:
            torch.save(optimizer.state_dict(), path / "optimizer.pt")
    return thetas


def optimizer_of(
    model: LoraModel, kind: type[torch.optim.Optimizer], **options: Any
) -> torch.optim.Optimizer:
    """An optimiser that has taken two steps on the model's own parameters."""
    parameters = [p for p in model.peft.parameters() if p.requires_grad]
    optimizer = kind(parameters, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1))
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        scheduler.step()
    for p in parameters:
        p.grad = None
    return optimizer


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_round_trip(tiny_folder: Folder, tmp_path: Path, arch: str) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder(arch)), lora_rank=2, device="cpu"))
    thetas = write_run(model, tmp_path / "run")
    recipe = Recipe(learning_rate=3e-4)
    expert = import_checkpoints(model, tmp_path / "run", tmp_path / "expert", recipe)
    assert expert.steps == [5, 10, 100]
    assert expert.total == 120
    assert expert.recipe == replace(recipe, steps=120, batch_size=6)
    assert expert.state == "zeros"
    assert expert.seed is None
    assert expert.order == []
    assert expert.held_out == {5: 2.5, 10: 5.0, 100: 50.0}
    assert expert.losses == [1.0 + step for step in range(5, 101, 5)]
    again = open_expert(tmp_path / "expert")
    for step, theta in thetas.items():
        start = again.snapshot(step)
        assert torch.equal(start.theta, theta)
        assert start.count == step
        assert [part.abs().sum() for part in start.state] == [0, 0]
    assert json.loads((tmp_path / "expert" / "manifest.json").read_text())["state"] == "zeros"


def test_one_adapter(model: LoraModel, tmp_path: Path) -> None:
    theta = torch.randn(model.size, generator=torch.Generator().manual_seed(0))
    adapter_folder(model, theta, tmp_path / "adapter")
    model.write(torch.zeros(model.size))
    assert torch.equal(read_adapter(model, tmp_path / "adapter"), theta)
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors there"):
        read_adapter(model, tmp_path)


def test_moments_of_adamw(model: LoraModel, tmp_path: Path) -> None:
    optimizer = optimizer_of(model, torch.optim.AdamW, lr=2e-4, betas=(0.8, 0.95), weight_decay=0.1)
    write_run(model, tmp_path / "run", optimizer)
    expert = import_checkpoints(model, tmp_path / "run", tmp_path / "expert")
    assert expert.state == "recorded"
    assert expert.recipe == Recipe(
        learning_rate=2e-4, beta1=0.8, beta2=0.95, weight_decay=0.1, steps=120, batch_size=6
    )
    parameters = [p for p in model.peft.parameters() if p.requires_grad]
    for part, key in zip(expert.snapshot(10).state, ("exp_avg", "exp_avg_sq"), strict=True):
        expected = torch.cat([optimizer.state[p][key].reshape(-1) for p in parameters])
        assert torch.equal(part, expected)


def test_moments_of_sgd(model: LoraModel, tmp_path: Path) -> None:
    optimizer = optimizer_of(model, torch.optim.SGD, lr=0.1, momentum=0.9)
    write_run(model, tmp_path / "run", optimizer)
    expert = import_checkpoints(model, tmp_path / "run", tmp_path / "expert")
    assert (expert.recipe.optimizer, expert.recipe.momentum) == ("sgd", 0.9)
    parameters = [p for p in model.peft.parameters() if p.requires_grad]
    expected = [optimizer.state[p]["momentum_buffer"].reshape(-1) for p in parameters]
    assert torch.equal(expert.snapshot(10).state[0], torch.cat(expected))


class Harmful:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_moments_that_cannot_be_read_safely_are_zeros(model: LoraModel, tmp_path: Path) -> None:
    optimizer = optimizer_of(model, torch.optim.AdamW, lr=2e-4)
    for number, content in enumerate(
        (Harmful(tmp_path / "harm"), {"state": {}}, [], optimizer_of(model, torch.optim.Adagrad))
    ):
        run = tmp_path / f"run-{number}"
        write_run(model, run, optimizer)
        value = content.state_dict() if isinstance(content, torch.optim.Optimizer) else content
        torch.save(value, run / "checkpoint-10" / "optimizer.pt")
        expert = import_checkpoints(model, run, tmp_path / f"expert-{number}")
        assert expert.state == "zeros"
        assert not expert.snapshot(5).state[0].any()
    run = tmp_path / "run-cut"
    write_run(model, run, optimizer)
    path = run / "checkpoint-10" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert import_checkpoints(model, run, tmp_path / "expert-cut").state == "zeros"
    assert not (tmp_path / "harm").exists()


def test_importing_twice_gives_the_same_files(model: LoraModel, tmp_path: Path) -> None:
    write_run(model, tmp_path / "run")
    out = tmp_path / "expert"
    import_checkpoints(model, tmp_path / "run", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "step-00010.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"step-00010\.safetensors: damaged"):
        open_expert(out).snapshot(10)
    import_checkpoints(model, tmp_path / "run", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match=r"--expert-rate 0\.0005 there, 0\.5 here"):
        import_checkpoints(model, tmp_path / "run", out, Recipe(learning_rate=0.5))


def test_other_adapters_are_refused(tiny_folder: Folder, model: LoraModel, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(model, run)

    def other(match: str, **config: Any) -> None:
        changed = load_model(
            ModelConfig(
                **({"model": str(tiny_folder("llama")), "lora_rank": 2, "device": "cpu"} | config)
            )
        )
        with pytest.raises(UserError, match=match):
            import_checkpoints(changed, run, tmp_path / "expert")

    other("give --lora-rank 2", lora_rank=4)
    other("give --lora-alpha 16", lora_alpha=8.0)
    other("give --lora-targets down_proj gate_proj k_proj", lora_targets=("q_proj",))
    other("--lora-targets", model=str(tiny_folder("gpt2")))
    other("has shape .*--model", model=str(tiny_folder("qwen3")))
    assert not (tmp_path / "expert").exists()


def test_mistakes_are_user_errors(model: LoraModel, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "expert"

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            import_checkpoints(model, run, out)

    refused("no such folder")
    run.mkdir()
    refused(r"no checkpoint-\* folders")
    write_run(model, run)
    config = run / "checkpoint-5" / "adapter_config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"use_rslora": True}))
    refused("use_rslora is True")
    config.write_text("{")
    refused(r"adapter_config\.json: damaged")
    config.write_text(text)
    state = run / "checkpoint-5" / "trainer_state.json"
    text = state.read_text()
    state.write_text(text.replace("120", "60"))
    refused("runs of 60 and 120 steps")
    state.write_text(text.replace('"global_step": 5', '"global_step": 7'))
    refused("of step 7")
    state.write_text(text)
    (run / "checkpoint-10" / "adapter_model.safetensors").write_bytes(b"short")
    refused(r"adapter_model\.safetensors: damaged")
    (run / "checkpoint-10" / "adapter_model.safetensors").unlink()
    refused(r"no adapter_model\.safetensors")
    shutil.rmtree(run / "checkpoint-10")
    shutil.rmtree(run / "checkpoint-100")
    refused("only checkpoint-5 there")
