"""The row `labelled`: random rows with the soft labels of a teacher that was trained on all rows.

Each target model has its own teacher: itself, trained once for `--full-epochs` by the recipe of the
first budget. Its students train at `--label-rate` times the recipe's learning rate, which soft
labels bear (docs/results.md).
"""

from __future__ import annotations

import hashlib

from torch import Tensor

from nacd.comparison.grid import folder_name
from nacd.comparison.rowset import RowSet, Training, encoded, train
from nacd.config import Budget
from nacd.config.commands import LabelConfig
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.data.rows import Rows
from nacd.data.soft_labels import SoftLabels
from nacd.distillation.learn import draw
from nacd.model.prepare import Prepared
from nacd.model.teacher import expectations
from nacd.store.run import RunFolder
from nacd.training.student import EXPERT_SEED


def teacher_file(target: str) -> str:
    """Where a target's teacher lies in a comparison's folder."""
    return f"teachers/{folder_name(target)}.safetensors"


def with_labels(target: Prepared, teacher: Tensor, data: Rows, of: str = "") -> Rows:
    """The same rows with what a teacher expects at each of their tokens.

    Args:
        target: the model; its LoRA is the teacher's afterwards.
        teacher: LoRA's values (P,).
        data: rows as the model reads them.
        of: what tells the labels from another teacher's; empty: they do.
    """
    target.model.write(teacher)
    expected = expectations(target.model, data.rows, LabelConfig.top)
    labels = SoftLabels([row.ids for row in data.rows], expected, of=of)
    return Rows.of(data.rows, data.pad_id, labels)


def labelled(config: CompareConfig, budget: Budget, source: Prepared, folder: RunFolder) -> RowSet:
    """The row at one budget: the rows of `random`, training by training."""
    teachers: dict[str, Tensor] = {}
    taught: dict[str, str] = {}

    def before(target: Prepared, recipe: Recipe) -> None:
        name = target.model.config.model
        data = Rows.of(target.train.rows, target.model.tokenizer.pad_token_id)
        of = {"rows": data.digest(), "epochs": f"{config.full_epochs:g}", "seed": f"{config.seed}"}

        def make() -> dict[str, Tensor]:
            training = Training(data, epochs=config.full_epochs)
            return {"theta": train(target, recipe, training, EXPERT_SEED + config.seed).theta}

        kept = folder.tensors(teacher_file(name).removesuffix(".safetensors"), make, of=of)
        theta = kept["theta"]
        teachers[name] = theta.to(target.model.device)
        taught[name] = hashlib.sha256(theta.numpy().tobytes()).hexdigest()[:16]

    def training(target: Prepared, seed: int) -> Training:
        rows = draw(source.train, budget, 10_000 + 100 * config.seed + seed)
        data = encoded([source.train.examples[i] for i in rows], target)
        name = target.model.config.model
        # a kept training is of the teacher in the file, not of how its labels round this time
        soft = with_labels(target, teachers[name], data, of=taught[name])
        return Training(soft, faster=config.label_rate)

    return RowSet("labelled", training, config.trainings, before=before)
