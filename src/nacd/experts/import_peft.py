"""A Trainer's output folder, `checkpoint-10/ checkpoint-20/ ...` of one run, as an expert.

In: `adapter_model.safetensors`, `adapter_config.json`, `trainer_state.json` and perhaps
`optimizer.pt` of each checkpoint. Out: an `Expert` with one snapshot a checkpoint. What the Trainer
keeps only as a pickle (`training_args.bin`: clipping, warm-up, schedule) is not read; it is taken
from the recipe that the caller gives. What `optimizer.pt` says of the optimiser goes before it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.errors import UserError
from nacd.experts.store import Expert, Writer, describe_model, open_expert
from nacd.meta import Start, State, initial_state
from nacd.model import adapters
from nacd.model.lora import LoraModel
from nacd.store.files import read_tensors


@dataclass(frozen=True)
class _Checkpoint:
    folder: Path
    step: int
    theta: Tensor
    progress: dict[str, Any]
    """`trainer_state.json`, or nothing."""
    optimizer: tuple[Recipe, State] | None


def import_checkpoints(
    model: LoraModel, folder: Path, out: Path, recipe: Recipe | None = None
) -> Expert:
    """Import the checkpoints of one Trainer run as an expert.

    The optimiser's moments come from `optimizer.pt` where all checkpoints have a readable one; else
    they are zeros, and the expert's `state` says so.

    Args:
        model: the base model with the same LoRA as the run's.
        folder: the Trainer's output folder.
        out: the expert's folder; an earlier import of the same run there is made again.
        recipe: the run's, as far as the checkpoints do not tell it (clipping, warm-up, schedule,
            and without `optimizer.pt` the optimiser and its learning rate).

    Raises:
        UserError: no checkpoints, less than two, not of one run, or not of this model and LoRA; the
            flag that mends it is named.
    """
    recipe = recipe or Recipe()
    paths = _checkpoint_folders(folder)
    found = [_read_checkpoint(model, step, path, recipe) for step, path in paths]
    lengths = {int(c.progress["max_steps"]) for c in found if "max_steps" in c.progress}
    if len(lengths) > 1:
        raise UserError(
            f"{folder}: its checkpoints are of runs of {' and '.join(map(str, sorted(lengths)))} "
            "steps, but an expert is one run; leave only one run's checkpoints there."
        )
    total = lengths.pop() if lengths else found[-1].step
    if all(c.optimizer is not None for c in found):
        kind = "recorded"
        recipe = next(c.optimizer[0] for c in found if c.optimizer is not None)
    else:
        kind = "zeros"
    batch = found[-1].progress.get("train_batch_size") or recipe.batch_size
    recipe = replace(recipe, steps=total, batch_size=int(batch))
    made_with = describe_model(model) | {"recipe": asdict(recipe), "total": total}
    made_with["source"] = str(folder.resolve())
    writer = Writer(out, made_with, state=kind)
    writer.snapshots = []
    before = 0
    for checkpoint in found:
        if kind == "recorded" and checkpoint.optimizer is not None:
            state = checkpoint.optimizer[1]
        else:
            state = initial_state(recipe, checkpoint.theta)
        history = checkpoint.progress.get("log_history", [])
        losses = [
            float(entry["loss"])
            for entry in history
            if "loss" in entry and before < entry.get("step", 0) <= checkpoint.step
        ]
        held_out = [
            float(entry["eval_loss"])
            for entry in history
            if "eval_loss" in entry and entry.get("step") == checkpoint.step
        ]
        writer.add(
            Start(checkpoint.theta, state, checkpoint.step),
            losses,
            held_out[-1] if held_out else None,
        )
        before = checkpoint.step
    return open_expert(out)


def read_adapter(model: LoraModel, folder: Path) -> Tensor:
    """Theta (P,), on the CPU, of a LoRA adapter that `peft` saved in `folder`.

    Args:
        model: the base model with the same LoRA as the adapter's.
        folder: holds `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        UserError: no adapter there, a damaged one, or one of another model, rank, alpha or targets;
            the flag that mends it is named.
    """
    options, path = adapters.check(folder)
    _check_options(model, options, folder / adapters.OPTIONS)
    return _theta(model, path)


def _checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a Trainer's output folder.")
    found = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and path.is_dir():
            found.append((int(number), path))
    if not found:
        raise UserError(
            f"{folder}: no checkpoint-* folders there; give the output folder of a Trainer with "
            "save_strategy=steps."
        )
    if len(found) == 1:
        raise UserError(
            f"{folder}: only {found[0][1].name} there, but a trajectory has at least two; train "
            "with a smaller save_steps or a larger save_total_limit."
        )
    return sorted(found)


def _read_checkpoint(model: LoraModel, step: int, path: Path, recipe: Recipe) -> _Checkpoint:
    theta = read_adapter(model, path)
    progress: dict[str, Any] = {}
    if (path / "trainer_state.json").is_file():
        progress = adapters.read_json(path / "trainer_state.json")
        if progress.get("global_step", step) != step:
            raise UserError(
                f"{path / 'trainer_state.json'}: of step {progress['global_step']}, but its folder "
                f"is checkpoint-{step}; put the checkpoint back under its own name."
            )
    optimizer = _read_optimizer(model, path / "optimizer.pt", theta, recipe)
    return _Checkpoint(path, step, theta, progress, optimizer)


def _check_options(model: LoraModel, options: Mapping[str, Any], path: Path) -> None:
    """Refuse an adapter whose A and B mean something else than the model's own LoRA by them."""
    for name, flag, ours in (
        ("r", "--lora-rank", model.config.lora_rank),
        ("lora_alpha", "--lora-alpha", model.config.lora_alpha),
    ):
        if options[name] != ours:
            raise UserError(
                f"{path}: {name} is {options[name]}, but {flag} is {ours}; give {flag} "
                f"{options[name]}."
            )
    own = model.peft.peft_config["default"].to_dict()
    other = adapters.differing(options, own)
    if options["init_lora_weights"] in adapters.SAME_BASE:
        other.pop("init_lora_weights", None)
    for name, value in other.items():
        if name not in adapters.NO_MATTER:
            raise UserError(
                f"{path}: {name} is {value}, but an expert is plain LoRA ({name} "
                f"{own.get(name)}), as distilled rows are trained; train it without that option."
            )


def _theta(model: LoraModel, path: Path) -> Tensor:
    """The adapter's matrices, laid end to end as theta (P,)."""
    adapters.refuse_vocabulary(path, model.hf, model.config.model)
    tensors = {_without_adapter(key): value for key, value in read_tensors(path)[0].items()}
    keys = [adapters.PREFIX + _without_adapter(name) for name in model.names]
    if set(keys) != set(tensors):
        raise UserError(f"{path}: {_other_keys(model, set(keys), set(tensors))}")
    for key, size in zip(keys, model.shapes, strict=True):
        if tensors[key].shape != size:
            raise UserError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)}, but {tuple(size)} in "
                f"--model {model.config.model}; give the --model that the run was trained on."
            )
    dtype = model.fresh_theta(0).dtype
    return torch.cat([tensors[key].reshape(-1).to(dtype) for key in keys])


def _other_keys(model: LoraModel, ours: set[str], there: set[str]) -> str:
    """Why an adapter's matrices are not the model's, and what to do."""
    whole = sorted(key for key in there - ours if ".lora_" not in key)
    if whole:
        return (
            f"it holds {whole[0]} beside LoRA{f' (and {len(whole) - 1} more)' * (len(whole) > 1)}, "
            "but an expert is LoRA alone; train it without saving such weights "
            "(save_embedding_layers, modules_to_save)."
        )
    targets = [sorted({_module(key) for key in keys}) for keys in (there, ours)]
    if targets[0] != targets[1]:
        return (
            f"its LoRA is on {' '.join(targets[0])}, but --lora-targets puts it on "
            f"{' '.join(targets[1])}; give --lora-targets {' '.join(targets[0])}."
        )
    beside, lacking = sorted(there - ours), sorted(ours - there)
    parts = [f"lacks {len(lacking)} of the matrices ({lacking[0]})"] if lacking else []
    parts += [f"holds {len(beside)} others ({beside[0]})"] if beside else []
    return (
        f"for --model {model.config.model} it {' and '.join(parts)}; give the --model that the run "
        "was trained on, and files as peft's save_pretrained names the matrices."
    )


def _without_adapter(name: str) -> str:
    """`q_proj.lora_A.default.weight` to `q_proj.lora_A.weight`, as peft names it in its files."""
    return re.sub(r"(\.lora_[AB])\.default\b", r"\1", name)


def _module(key: str) -> str:
    return key.rpartition(".lora_")[0].rpartition(".")[2]


def _read_optimizer(
    model: LoraModel, path: Path, theta: Tensor, recipe: Recipe
) -> tuple[Recipe, State] | None:
    """The optimiser's constants and state, or None where they cannot be had."""
    if not path.is_file():
        return None
    try:
        # The Trainer's own format is a pickle; weights_only allows tensors and plain containers
        # alone, so that no code in the file is run.
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return _optimizer(model, saved, theta, recipe)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, *_UNLIKE) as error:
        del error  # another optimiser's state, or a damaged file: the moments are zeros
        return None


_UNLIKE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def _optimizer(
    model: LoraModel, saved: Mapping[str, Any], theta: Tensor, recipe: Recipe
) -> tuple[Recipe, State]:
    """Read a `torch.optim` state of AdamW or SGD; ValueError and its kin: it is another's."""
    groups = [group for group in saved["param_groups"] if group["params"]]
    if len(groups) != 1 or len(groups[0]["params"]) != len(model.names):
        raise ValueError("parameters in another order than theta's")
    group = groups[0]
    coupled = group.get("decoupled_weight_decay") is False and group["weight_decay"]
    if coupled or any(group.get(key) for key in ("amsgrad", "nesterov", "dampening")):
        raise ValueError("a variant that the update does not know")
    entries = [saved["state"].get(i, {}) for i in group["params"]]
    common = {
        "learning_rate": float(group.get("initial_lr", group["lr"])),
        "weight_decay": float(group["weight_decay"]),
    }
    if "betas" in group:
        keys = ("exp_avg", "exp_avg_sq")
        beta1, beta2 = (float(b) for b in group["betas"])
        recipe = replace(
            recipe,
            optimizer="adamw",
            beta1=beta1,
            beta2=beta2,
            eps=float(group["eps"]),
            root_eps=0.0,
            **common,
        )
    else:
        recipe = replace(recipe, optimizer="sgd", momentum=float(group["momentum"]), **common)
        keys = ("momentum_buffer",) if recipe.momentum > 0 else ()
    state = []
    for key in keys:
        parts = [entry[key] for entry in entries]
        for part, shape in zip(parts, model.shapes, strict=True):
            if part.shape != shape:
                raise ValueError("other shapes than theta's")
        state.append(torch.cat([part.reshape(-1) for part in parts]).to(theta))
    return recipe, tuple(state)
