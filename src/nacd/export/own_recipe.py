"""The training that a data set is for, as settings of `nacd train`: `train_with/nacd.yaml`.

Beside the other trainers' files and of the same values; `nacd train --data` on any file of the data
set begins with it, and flags go over it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import yaml

from nacd.config import ModelConfig
from nacd.config.recipe import Recipe
from nacd.config.settings import read_settings
from nacd.errors import UserError
from nacd.store.files import write_text
from nacd.store.key import flatten

FOLDER = "train_with"
OWN = "nacd.yaml"
LORA = ("lora_rank", "lora_alpha", "lora_targets")
"""What of a model's settings belongs to the training that rows are for."""


def write_own_recipe(folder: Path, recipe: Recipe, model: ModelConfig, longest: int) -> None:
    """Write the file into `folder`, whole or not at all.

    Args:
        folder: `train_with/` of the data set.
        recipe: of the training.
        model: whose LoRA it is; which model is trained is left open.
        longest: tokens that a row has room for.
    """
    lora = {name: getattr(model, name) for name in LORA} | {"lora_targets": [*model.lora_targets]}
    values = {"recipe": asdict(recipe), "model": lora, "data": {"max_tokens": longest}}
    head = "# `nacd train --data` on these rows begins with this; flags go over it.\n"
    write_text(folder / OWN, head + yaml.safe_dump(values, sort_keys=False))


def beside(rows: Path, name: str) -> Path:
    """Where a trainer's file stands for a data set's folder, or for any file of its rows."""
    rows = rows.expanduser()
    folder = rows if rows.is_dir() else rows.parent
    return (folder if folder.name == FOLDER else folder / FOLDER) / name


def own_recipe(rows: Path) -> Path | None:
    """The file of a data set, or of a file of its rows; None: there is none.

    Raises:
        UserError: it sets more than a training: where files are written, say, or which model is
            read. A data set may come from anybody.
    """
    file = beside(rows, OWN)
    if not (rows.expanduser().exists() and file.is_file()):
        return None
    known = {"recipe": None, "model": {*LORA}, "data": {"max_tokens"}}
    for key in flatten(read_settings(file)):
        group, _, name = key.partition(".")
        if group not in known or (known[group] is not None and name not in known[group]):
            raise UserError(
                f"{file}: sets {key}, and a data set's own file may set its training alone "
                f"(recipe, model.{', model.'.join(LORA)}, data.max_tokens); take {key} out, or "
                f"give --config {file} yourself if you trust it."
            )
    return file


def recipe_line(recipe: Recipe, model: ModelConfig, file: Path) -> str:
    """One line on the training that a data set's own file gives, flags gone over it."""
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs:g} epochs"
    return (
        f"as the data set's own {file} says, and flags over it: rows "
        f"{'shuffled' if recipe.shuffle else 'in their order'}, {recipe.optimizer} at "
        f"{recipe.learning_rate:g}, {length}, batches of {recipe.batch_size}, {recipe.schedule} "
        f"schedule, warm-up {recipe.warmup:g}, LoRA of rank {model.lora_rank} (alpha "
        f"{model.lora_alpha:g}, {' '.join(model.lora_targets)})"
    )
