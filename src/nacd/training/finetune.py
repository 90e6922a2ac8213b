"""Fine-tune a model on a data set by TRL's SFTTrainer, with LoRA and a loss on responses alone.

What flows in: rows and a `Recipe`. What flows out: the trained theta, the loss of every step, and
(from `train`) a `peft` adapter. The trainer is given token ids and labels, not text, so that
conversations with several labelled turns are trained as they were encoded; for rows of
`prompt` and `completion` it would make the same ids and labels of the text itself. It visits the
rows in the order of `nacd.data.epoch_order`, as the inner loop does, and starts from the LoRA of
`LoraModel.fresh_theta`: the two agree batch by batch. A step's batch passes through the model in
the same packed parts as there, each part's loss divided by the whole batch's label tokens.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig

from nacd.config.recipe import Recipe
from nacd.data import (
    Encoded,
    Example,
    encode_all,
    make_template,
    training_order,
)
from nacd.data.soft_labels import SoftLabels, read_soft_labels
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, adapter_folder, check_ids, load_model
from nacd.model.microbatch import settle
from nacd.store.files import write_json
from nacd.training.optimiser import own_optimizer, trainable
from nacd.training.trainer import Order, Trainer

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all, and the step's loss."""


@dataclass(frozen=True)
class TrainResult:
    """A finished fine-tuning."""

    theta: Tensor
    """Trained LoRA, (P,)."""
    losses: list[float]
    """Mean response NLL per token of every step's batch, before the step."""
    rates: list[float]
    """Learning rate of every step."""
    tokens: int
    """Tokens trained on, padding left out, repeats counted."""
    seconds: float
    adapter: Path | None = None
    """Folder of the saved `peft` adapter."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user: what of the model is not used or trained, what encoding left out or put
    in, how much fits in the memory."""


def train(
    model_config: ModelConfig,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    template: str = "auto",
    seed: int = 0,
    out: Path,
    max_tokens: int = 1024,
    turns: Literal["all", "last"] = "all",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    soft_labels: Path | None = None,
    soft_weight: float = 1.0,
    soft_prompts: bool = True,
    before: Callable[[LoraModel, Sequence[Encoded]], None] = lambda model, rows: None,
) -> TrainResult:
    """Load a model, fine-tune it on examples, and save the adapter and its metrics.

    Args:
        model_config: the model and its LoRA.
        examples: the rows.
        recipe: optimiser, schedule, batch size and length.
        template: as in `nacd.data.make_template`.
        seed: of LoRA's first values and, where the recipe shuffles, of the rows' order.
        out: gets `adapter/` and, written last, `train.json`.
        max_tokens: longer rows are dropped and counted.
        turns: which assistant turns of a conversation are labels; `last` is what TRL takes of a
            `prompt`/`completion` row.
        progress: called after every step.
        say: takes lines for the user: rows that were dropped, how much fits in the memory.
        soft_labels: file of a teacher's labels of these rows; None: there is none.
        soft_weight: of them in the loss, 0 to 1; the rows' own tokens have the rest.
        soft_prompts: whether those at the tokens of prompts count, too.
        before: called with the loaded model and the encoded rows, just before the first step.

    Raises:
        UserError: the model cannot be loaded, a row cannot be encoded or none is left, the recipe
            is out of range, or the loss is no longer finite.
    """
    recipe.check()
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        say(line)

    model = load_model(model_config)
    writer = make_template(template, model.tokenizer, examples)
    rows, kept, dropped = encode_all(writer, examples, max_tokens, turns=turns)
    check_ids(model, rows, kept)
    for line in model.notes:
        note(line)
    if dropped.message:
        note(dropped.message)
    soft = None
    if soft_labels is not None:
        soft = read_soft_labels(soft_labels, model.tokenizer, soft_prompts)
        soft.check(rows, kept)
    settle(model, max(len(row) for row in rows), say=note)
    before(model, rows)
    result = fit(model, rows, recipe, seed=seed, progress=progress, soft=soft, weight=soft_weight)
    adapter = save_adapter(model, result.theta, out / "adapter")
    write_json(
        out / "train.json",
        {
            "model": asdict(model_config),
            "template": writer.describe(),
            "turns": turns,
            "max_tokens": max_tokens,
            "micro_tokens": model.micro,
            "recipe": asdict(recipe),
            "seed": seed,
            "soft_labels": None if soft_labels is None else str(soft_labels),
            "soft_weight": 0.0 if soft_labels is None else soft_weight,
            "soft_prompts": soft_labels is not None and soft_prompts,
            "rows": len(rows),
            "dropped": dropped.count,
            "steps": len(result.losses),
            "tokens": result.tokens,
            "seconds": round(result.seconds, 3),
            "losses": result.losses,
            "learning_rates": result.rates,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        },
    )
    return replace(result, adapter=adapter, notes=notes)


def fit(
    model: LoraModel,
    rows: Sequence[Encoded],
    recipe: Recipe,
    *,
    seed: int = 0,
    theta: Tensor | None = None,
    progress: Progress | None = None,
    soft: SoftLabels | None = None,
    weight: float = 1.0,
) -> TrainResult:
    """Fine-tune a loaded model on encoded rows by SFTTrainer.

    Args:
        model: its LoRA is overwritten; everything else is left as it was.
        rows: the encoded rows.
        recipe: optimiser, schedule, batch size and length.
        seed: of LoRA's first values (unless `theta` is given) and of the shuffles.
        theta: LoRA to start from, (P,).
        progress: called after every step.
        soft: a teacher's labels of these rows; None: the rows' own tokens alone are labels.
        weight: of the soft labels in the loss, 0 to 1; the rows' own tokens have the rest.

    Raises:
        UserError: no row, a recipe out of range or too short, or a loss that is no longer finite.
    """
    recipe.check()
    if not rows:
        raise UserError("no rows to train on: give --data a file with rows.")
    recipe.check_rows(len(rows))
    start = time.perf_counter()
    model.write(model.fresh_theta(seed) if theta is None else theta)
    table = Dataset.from_dict(
        {
            "input_ids": [list(row.ids) for row in rows],
            "labels": [
                [i if label else -100 for i, label in zip(row.ids, row.response, strict=True)]
                for row in rows
            ],
        }
    )
    with tempfile.TemporaryDirectory() as scratch, _as_it_was(model):
        config = sft_config(
            recipe, len(rows), seed=seed, out=Path(scratch), cpu=model.device.type == "cpu"
        )
        _ = config.device  # sets the number of GPUs, of which one is used: the model's
        config._n_gpu = min(config._n_gpu, 1)
        trainer = Trainer(
            lora=model,
            model=model.peft,
            args=config,
            train_dataset=table,
            processing_class=model.tokenizer,
            optimizers=(own_optimizer(model, recipe), None),
            order=Order(len(rows), recipe.batch_size, recipe.order_seed(seed)),
            soft=soft,
            weight=weight,
            callbacks=[_Report(progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    steps = recipe.total_steps(len(rows))
    visits = training_order(len(rows), recipe.batch_size, steps, recipe.order_seed(seed))
    return TrainResult(
        theta=torch.cat([p.detach().reshape(-1) for p in trainable(model)]).clone(),
        losses=[float(entry["loss"]) for entry in log],
        rates=[float(entry["learning_rate"]) for entry in log],
        tokens=sum(len(rows[i]) for batch in visits for i in batch),
        seconds=time.perf_counter() - start,
    )


def sft_config(recipe: Recipe, rows: int, *, seed: int, out: Path, cpu: bool = False) -> SFTConfig:
    """The recipe as TRL's configuration, for a data set of `rows` rows.

    SGD and `root_eps` have no field there: `fit` hands the trainer an optimiser for them.
    """
    steps = recipe.total_steps(rows)
    schedule = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    return SFTConfig(
        output_dir=str(out),
        use_cpu=cpu,
        # the recipe
        optim="adamw_torch",
        learning_rate=recipe.learning_rate,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        adam_epsilon=recipe.eps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type=schedule,
        warmup_steps=math.ceil(steps * recipe.warmup),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=1,
        seed=seed,
        # the rows are ready as they are
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        dataloader_drop_last=False,
        dataloader_pin_memory=False,
        # number format and checkpointing are the model's own matter
        bf16=False,
        fp16=False,
        activation_checkpointing=False,
        # nothing leaves this machine, nothing is written but what `train` writes
        report_to="none",
        push_to_hub=False,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        log_level="error",
    )


def save_adapter(model: LoraModel, theta: Tensor, folder: Path) -> Path:
    """Save theta (P,) as a `peft` adapter, the folder whole or as it was.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        adapter_folder(model, theta, partial)
        model.tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); free some space or choose another "
            "--out, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_losses(out: Path) -> list[float]:
    """The loss of every step of a finished `train` into `out`."""
    return json.loads((out / "train.json").read_text(encoding="utf-8"))["losses"]


class _Report(TrainerCallback):
    """Reports every step's loss, and stops at one that is not finite."""

    def __init__(self, progress: Progress | None):
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {state.global_step} of {state.max_steps}: training "
                f"diverged at --learning-rate {args.learning_rate:g}; give a smaller one."
            )
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, loss)


@contextlib.contextmanager
def _as_it_was(model: LoraModel) -> Iterator[None]:
    """Undo what the trainer does to the module: its mode, its forward (trl's fused head), grads."""
    training, forward = model.hf.training, model.hf.__dict__.get("forward")
    try:
        yield
    finally:
        model.hf.train(training)
        model.hf.__dict__.pop("forward", None)
        if forward is not None:
            model.hf.forward = forward
        for p in trainable(model):
            p.grad = None
