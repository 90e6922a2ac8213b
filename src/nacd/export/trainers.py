"""The same training in any trainer: configuration files beside the data.

What flows in: the rows, the recipe, the LoRA. What flows out, in `train_with/` of the data set
folder, each file with the recipe's own values and paths relative to that folder:

    trl.yaml            `trl sft --config`
    axolotl.yaml        `axolotl train`
    llamafactory.yaml   `llamafactory-cli train`
    nacd.yaml           `nacd train` (`nacd.export.own_recipe`)
    dataset_info.json   LLaMA-Factory's register of the data
    messages.parquet    chat rows as one column, for the two trainers that know no pair of columns
    messages.jsonl      the same rows, one a line

The card's header names `train.parquet` as the only data, so `datasets.load_dataset` passes these
by. What a trainer makes goes to `trained/<rows_name>`: LLaMA-Factory goes on from a checkpoint that
it finds in its output folder, and Axolotl takes prepared rows by the settings that they were
prepared with, whatever rows there were. Option names are those of TRL 1.16, Axolotl 0.19 and
LLaMA-Factory 0.9.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nacd.config import ModelConfig
from nacd.config.model import PACKAGED
from nacd.config.recipe import Recipe
from nacd.export.dataset import DatasetRow, rows_name, write_rows
from nacd.export.own_recipe import FOLDER, beside, write_own_recipe
from nacd.export.readers import AXOLOTL, LLAMAFACTORY, read_otherwise
from nacd.store.files import write_json, write_text

TRAINED = "trained"
"""Where the trainers put what they make."""
_TRL_ORDER = {"train_sampling_strategy": "sequential"}
_AXOLOTL_ORDER = {"shuffle_merged_datasets": False, "curriculum_sampling": True}
DATA = "nacd"
"""The data's name in LLaMA-Factory's register."""
HEADROOM = 2
"""Room for a row, in multiples of --max-tokens: another tokenizer makes more tokens of it."""


@dataclass(frozen=True)
class _Plan:
    """What the three configurations say."""

    recipe: Recipe
    model: ModelConfig
    warmup: int
    """Steps."""
    longest: int
    """Tokens that a row has room for."""
    seed: int
    chat: bool
    trained: str
    """Folder of what the trainers make, from the data set's."""


def write_trainers(
    folder: Path,
    rows: Sequence[DatasetRow],
    recipe: Recipe,
    model: ModelConfig,
    *,
    max_tokens: int,
    seed: int = 0,
) -> list[Path]:
    """Write the files, each whole or not at all.

    Args:
        folder: the data set's folder, with `train.parquet` in it.
        rows: its rows, at least one.
        recipe: the training that they are for.
        model: the model they were made with, and its LoRA.
        max_tokens: of the longest row.
        seed: of the training.

    Returns:
        The files' paths.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    place, chat = folder / FOLDER, rows[0].chat
    if chat:
        write_rows(place, "messages", [{"messages": _marked(row)} for row in rows])
    else:
        for kind in ("jsonl", "parquet"):
            (place / f"messages.{kind}").unlink(missing_ok=True)
    steps = math.ceil(recipe.total_steps(len(rows)) * recipe.warmup)
    plan = _Plan(
        recipe,
        model,
        warmup=steps,
        longest=HEADROOM * max_tokens + max(map(_bytes, rows)),
        seed=seed,
        chat=chat,
        trained=f"{TRAINED}/{rows_name(rows)}",
    )
    otherwise = read_otherwise(rows)
    different = _different(recipe, model)
    _write(
        place / "trl.yaml",
        "trl sft --config train_with/trl.yaml",
        _trl(plan),
        different,
    )
    _write(
        place / "axolotl.yaml",
        "axolotl train train_with/axolotl.yaml",
        _axolotl(plan),
        different
        + ["A warm-up of 1 step becomes one of 2."] * (steps == 1)
        + [_AFTER if chat else _BORDER]
        + _elsewhere(recipe)
        + otherwise[AXOLOTL],
    )
    _write(
        place / "llamafactory.yaml",
        "llamafactory-cli train train_with/llamafactory.yaml",
        _llamafactory(plan),
        different
        + _elsewhere(recipe)
        + ([_PIECES] if chat else [_BORDER, _EMPTY])
        + otherwise[LLAMAFACTORY],
    )
    write_own_recipe(place, recipe, model, plan.longest)
    write_json(place / "dataset_info.json", {DATA: _register(chat)})
    return sorted(place.iterdir())


def made_in_order(rows: Path) -> bool:
    """Whether a data set, or a file of its rows, is to be trained on without shuffling."""
    file = beside(rows, "trl.yaml")
    if not file.is_file():
        return False
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(said, dict) and _TRL_ORDER.items() <= said.items()


_BORDER = "It makes tokens of prompt and completion apart: they may differ where the two meet."
_AFTER = (
    "It takes the loss up to the end-of-turn token, not over what the template writes after that."
)
_PIECES = (
    "It cuts the model's chat template into a piece a turn, and makes tokens of each apart: they "
    "may differ where a template trims a turn, or looks at more than its role. Where it cannot cut "
    "the template (Gemma's), name one of its own, as in `template: gemma`."
)
_EMPTY = (
    "Its template `empty` writes the rows as they are, but neither a BOS token before them nor the "
    "end-of-text token after them, which the rows were made with."
)


def _different(recipe: Recipe, model: ModelConfig) -> list[str]:
    """What no configuration file can say."""
    found = []
    if recipe.optimizer == "adamw" and recipe.root_eps:
        found.append(
            f"AdamW has no epsilon inside the root here (the recipe: {recipe.root_eps:g})."
        )
    if model.lora_alpha != int(model.lora_alpha):
        found.append(f"LoRA alpha is a whole number here (the recipe: {model.lora_alpha:g}).")
    if model.model in PACKAGED:
        found.append("The rows were made with a 4-bit copy of this model.")
    return found


def _elsewhere(recipe: Recipe) -> list[str]:
    if recipe.optimizer == "sgd" and recipe.momentum:
        return ["Older versions of transformers leave SGD's momentum out."]
    return []


def _marked(row: DatasetRow) -> list[dict[str, Any]]:
    """A row's messages, of which the last alone is trained on."""
    return [
        *({**message, "train": False} for message in row.prompt if isinstance(message, dict)),
        *({**message, "train": True} for message in row.completion if isinstance(message, dict)),
    ]


def _bytes(row: DatasetRow) -> int:
    """UTF-8 bytes of a row's texts: no tokenizer makes more tokens of them."""
    return len("".join(row.texts).encode())


def _write(path: Path, command: str, values: dict[str, Any], notes: Sequence[str]) -> None:
    head = [
        f"From the folder of train.jsonl: {command}",
        "For one device: with N of them, divide the batch size by N.",
        *notes,
    ]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(path, "".join(f"# {line}\n" for line in head) + text)


def _model_name(model: ModelConfig) -> str:
    """The model as a trainer finds it from the data set's folder: a whole path, or a hub id.

    A path as the user gave it, from elsewhere, may be the name of another model on the hub.
    """
    path = Path(model.model).expanduser()
    return PACKAGED.get(model.model) or (str(path.resolve()) if path.exists() else model.model)


def _length(recipe: Recipe, epochs: str) -> dict[str, Any]:
    """Steps where the recipe counts steps, else epochs; both come to the same steps as ours."""
    return {"max_steps": recipe.steps} if recipe.steps else {epochs: recipe.epochs}


def _schedule(recipe: Recipe) -> str:
    return "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule


def _adam(recipe: Recipe) -> dict[str, Any]:
    if recipe.optimizer == "sgd":
        return {"optim_args": f"momentum={recipe.momentum}"} if recipe.momentum else {}
    return {"adam_beta1": recipe.beta1, "adam_beta2": recipe.beta2, "adam_epsilon": recipe.eps}


def _optimizer(recipe: Recipe) -> str:
    return "sgd" if recipe.optimizer == "sgd" else "adamw_torch"


def _arguments(plan: _Plan) -> dict[str, Any]:
    """The recipe in transformers' own names, which TRL and LLaMA-Factory share."""
    recipe = plan.recipe
    return {
        "optim": _optimizer(recipe),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": _schedule(recipe),
        "warmup_steps": plan.warmup,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": 1,
        **_length(recipe, "num_train_epochs"),
        "max_grad_norm": recipe.clip,
        "weight_decay": recipe.weight_decay,
        **_adam(recipe),
        "seed": plan.seed,
        "logging_steps": 1,
        "report_to": "none",
    }


def _trl(plan: _Plan) -> dict[str, Any]:
    recipe, model = plan.recipe, plan.model
    return {
        "model_name_or_path": _model_name(model),
        "dtype": model.dtype,
        "datasets": [{"path": "parquet", "data_files": "train.parquet"}],
        "output_dir": f"{plan.trained}/trl",
        "use_peft": True,
        "lora_r": model.lora_rank,
        "lora_alpha": round(model.lora_alpha),
        "lora_dropout": 0.0,
        "lora_target_modules": list(model.lora_targets),
        "completion_only_loss": True,
        "max_length": None,
        "packing": False,
        **({} if recipe.shuffle else _TRL_ORDER),
        "activation_checkpointing": model.gradient_checkpointing,
        "bf16": False,  # as in `nacd train`: LoRA is float32, the frozen weights are `dtype`
        **_arguments(plan),
    }


def _axolotl(plan: _Plan) -> dict[str, Any]:
    recipe, model = plan.recipe, plan.model
    every = model.lora_targets == ("all-linear",)
    written: dict[str, Any] = {"path": f"{FOLDER}/messages.parquet", "ds_type": "parquet"}
    if plan.chat:
        written |= {
            "type": "chat_template",
            "chat_template": "tokenizer_default",
            "field_messages": "messages",
            "message_field_training": "train",
        }
    else:
        written |= {
            "path": "train.parquet",
            "type": {
                "field_instruction": "prompt",
                "field_output": "completion",
                "format": "{instruction}",
                "no_input_format": "{instruction}",
            },
        }
    return {
        "base_model": _model_name(model),
        "datasets": [written],
        **({} if recipe.shuffle else _AXOLOTL_ORDER),
        "train_on_inputs": False,
        "val_set_size": 0,
        "dataset_prepared_path": f"{plan.trained}/axolotl-data",
        "output_dir": f"{plan.trained}/axolotl",
        "sequence_len": plan.longest,
        "excess_length_strategy": "raise",
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "adapter": "lora",
        "lora_r": model.lora_rank,
        "lora_alpha": round(model.lora_alpha),
        "lora_dropout": 0.0,
        **(
            {"lora_target_linear": True}
            if every
            else {"lora_target_modules": list(model.lora_targets)}
        ),
        "optimizer": _optimizer(recipe),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler": _schedule(recipe),
        "warmup_steps": plan.warmup,
        "micro_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": 1,
        **_length(recipe, "num_epochs"),
        "max_grad_norm": recipe.clip,
        "weight_decay": recipe.weight_decay,
        **_adam(recipe),
        "seed": plan.seed,
        "bf16": model.dtype == "bfloat16",
        "fp16": model.dtype == "float16",
        "logging_steps": 1,
    }


def _llamafactory(plan: _Plan) -> dict[str, Any]:
    recipe, model = plan.recipe, plan.model
    every = model.lora_targets == ("all-linear",)
    return {
        "model_name_or_path": _model_name(model),
        "stage": "sft",
        "do_train": True,
        "dataset": DATA,
        "dataset_dir": FOLDER,
        **(
            {"mask_history": True} if plan.chat else {"template": "empty"}
        ),  # chat: the tokenizer's own
        "train_on_prompt": False,
        "cutoff_len": plan.longest,
        "packing": False,
        **({} if recipe.shuffle else {"disable_shuffling": True}),
        "output_dir": f"{plan.trained}/llamafactory",
        "finetuning_type": "lora",
        "lora_rank": model.lora_rank,
        "lora_alpha": round(model.lora_alpha),
        "lora_dropout": 0.0,
        "lora_target": "all" if every else ",".join(model.lora_targets),
        "bf16": model.dtype == "bfloat16",
        "fp16": model.dtype == "float16",
        **_arguments(plan),
    }


def _register(chat: bool) -> dict[str, Any]:
    """The data's entry in `dataset_info.json`; the file's path is relative to that file."""
    if chat:
        return {
            "file_name": "messages.parquet",
            "formatting": "sharegpt",  # `openai` adds to the system turn
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    return {
        "file_name": "../train.parquet",
        "formatting": "alpaca",
        "columns": {"prompt": "prompt", "response": "completion"},
    }
