"""The files in `train_with/`: read by the trainers themselves where those are installed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_dataset import CARD, CHAT, RAW
from transformers import AutoTokenizer, Trainer, TrainingArguments

from nacd.data import make_template, read_examples
from nacd.export import DatasetRow, render_learned_card, write_dataset, write_trainers
from nacd.models import ModelConfig
from nacd.recipe import Recipe

ORDERED = Recipe(batch_size=2, shuffle=False)
RECIPE = Recipe(learning_rate=3e-4, batch_size=2, epochs=3, schedule="cosine", clip=0.5)
SGD = Recipe(optimizer="sgd", momentum=0.9, steps=7, schedule="constant", warmup=0.0)
MODEL = ModelConfig(model="owner/model", lora_rank=4, lora_alpha=12)

# fmt: off (a word a line otherwise)
AXOLOTL = {
    "base_model",
    "datasets",
    "shuffle_merged_datasets",
    "curriculum_sampling",
    "train_on_inputs",
    "val_set_size",
    "dataset_prepared_path",
    "output_dir",
    "sequence_len",
    "excess_length_strategy",
    "sample_packing",
    "pad_to_sequence_len",
    "adapter",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_linear",
    "lora_target_modules",
    "optimizer",
    "optim_args",
    "learning_rate",
    "lr_scheduler",
    "warmup_steps",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "num_epochs",
    "max_steps",
    "max_grad_norm",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "seed",
    "bf16",
    "fp16",
    "logging_steps",
}
"""Options of ours that stand in axolotl 0.19's schema (axolotl/utils/schemas)."""
LLAMAFACTORY = {
    "model_name_or_path",
    "stage",
    "dataset",
    "dataset_dir",
    "mask_history",
    "template",
    "train_on_prompt",
    "cutoff_len",
    "packing",
    "disable_shuffling",
    "finetuning_type",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
}
"""Options of ours that stand in llamafactory 0.9.5's own (llamafactory/hparams); the others are
transformers'."""
# fmt: on


def written(folder: Path, rows: list[DatasetRow], recipe: Recipe = RECIPE) -> dict[str, Any]:
    """A data set with its files; the three configurations."""
    write_dataset(folder, rows, render_learned_card(CARD, rows))
    write_trainers(folder, rows, recipe, MODEL, max_tokens=64, seed=5)
    return {
        name: yaml.safe_load((folder / "train_with" / f"{name}.yaml").read_text())
        for name in ("trl", "axolotl", "llamafactory")
    }


@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
def test_load_dataset_passes_them_by(rows: list[DatasetRow], tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    written(folder, rows)
    loaded: Any = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == [dataclasses.asdict(row) for row in rows]


@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
@pytest.mark.parametrize("recipe", [RECIPE, SGD, ORDERED], ids=["adamw", "sgd", "in order"])
def test_every_option_exists(recipe: Recipe, rows: list[DatasetRow], tmp_path: Path) -> None:
    from trl.scripts.utils import DatasetMixtureConfig
    from trl.trainer.model_config import ModelConfig as TrlModel
    from trl.trainer.sft_config import SFTConfig

    files = written(tmp_path, rows, recipe)
    known = {
        f.name
        for kind in (SFTConfig, TrlModel, DatasetMixtureConfig)
        for f in dataclasses.fields(kind)
    }
    assert set(files["trl"]) <= known
    assert set(files["axolotl"]) <= AXOLOTL
    arguments = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert set(files["llamafactory"]) <= LLAMAFACTORY | arguments


def test_the_recipe_stands_in_each(tmp_path: Path) -> None:
    files = written(tmp_path, RAW)
    for name, epochs, batch, schedule, optimizer in (
        ("trl", "num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type", "optim"),
        ("axolotl", "num_epochs", "micro_batch_size", "lr_scheduler", "optimizer"),
        (
            "llamafactory",
            "num_train_epochs",
            "per_device_train_batch_size",
            "lr_scheduler_type",
            "optim",
        ),
    ):
        said = files[name]
        assert said["learning_rate"] == 3e-4
        assert said[epochs] == 3
        assert said[batch] == 2
        assert said["gradient_accumulation_steps"] == 1
        assert said[schedule] == "cosine"
        assert said[optimizer] == "adamw_torch"
        assert said["warmup_steps"] == 1  # a tenth of 3 steps, rounded up
        assert (said["max_grad_norm"], said["weight_decay"], said["seed"]) == (0.5, 0.0, 5)
        assert (said["adam_beta2"], said["adam_epsilon"]) == (0.999, 1e-8)
        assert (said.get("lora_r", said.get("lora_rank")), said["lora_alpha"]) == (4, 12)
    assert files["trl"]["completion_only_loss"] is True
    assert files["axolotl"]["train_on_inputs"] is False
    assert files["llamafactory"]["train_on_prompt"] is False


def test_an_order_is_kept(tmp_path: Path) -> None:
    kept = {
        "trl": {"train_sampling_strategy": "sequential"},
        "axolotl": {"shuffle_merged_datasets": False, "curriculum_sampling": True},
        "llamafactory": {"disable_shuffling": True},
    }
    for recipe in (RECIPE, dataclasses.replace(RECIPE, shuffle=False)):
        files = written(tmp_path, RAW, recipe)
        for name, options in kept.items():
            assert (files[name].items() >= options.items()) is not recipe.shuffle


def test_sgd_and_named_modules(tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, lora_targets=("q_proj", "v_proj"), lora_alpha=12.5)
    write_dataset(tmp_path, RAW, render_learned_card(CARD, RAW))
    write_trainers(tmp_path, RAW, SGD, model, max_tokens=64)
    for name in ("trl", "axolotl", "llamafactory"):
        text = (tmp_path / "train_with" / f"{name}.yaml").read_text()
        said = yaml.safe_load(text)
        assert said["max_steps"] == 7
        assert said.get("optim", said.get("optimizer")) == "sgd"
        assert said["optim_args"] == "momentum=0.9"
        assert "constant_with_warmup" in said.values()
        assert "LoRA alpha is a whole number here (the recipe: 12.5)" in text
        assert "q_proj" in str(said)
        assert "adam_beta1" not in said
    arguments = TrainingArguments(
        optim="sgd", optim_args=said["optim_args"], use_cpu=True, output_dir=str(tmp_path)
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert (kind, options["momentum"]) == (torch.optim.SGD, 0.9)


def test_llamafactory_register_names_files_that_are_there(tmp_path: Path) -> None:
    for rows, place in ((CHAT, "messages.jsonl"), (RAW, "../train.jsonl")):
        said = written(tmp_path, rows)["llamafactory"]
        folder = tmp_path / said["dataset_dir"]
        entry = json.loads((folder / "dataset_info.json").read_text())[said["dataset"]]
        assert entry["file_name"] == place
        lines = (folder / place).read_text().splitlines()
        names = set(json.loads(lines[0]))
        assert set(entry["columns"].values()) <= names
    assert not (tmp_path / "train_with" / "messages.jsonl").exists()


def test_chat_rows_as_messages_train_on_the_last(tmp_path: Path) -> None:
    said = written(tmp_path, CHAT)["axolotl"]["datasets"][0]
    lines = (tmp_path / said["path"]).read_text().splitlines()
    for line, row in zip(lines, CHAT, strict=True):
        messages = json.loads(line)[said["field_messages"]]
        plain = [{k: m[k] for k in ("role", "content")} for m in messages]
        assert plain == [*row.prompt, *row.completion]
        marks = [m[said["message_field_training"]] for m in messages]
        assert marks == [False] * (len(messages) - 1) + [True]


def ours(folder: Path, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of a data set's rows as the inner loop has them."""
    examples = read_examples(str(folder / "train.jsonl"))
    template = make_template("auto", tokenizer, examples)
    rows = [template.encode(example, turns="last") for example in examples]
    return [
        (
            list(row.ids),
            [i if label else -100 for i, label in zip(row.ids, row.response, strict=True)],
        )
        for row in rows
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
def test_axolotl_reads_it(
    rows: list[DatasetRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Callable[[str], Path],
) -> None:
    schemas = pytest.importorskip("axolotl.utils.schemas.config", reason="axolotl not installed")
    wrappers: Any = import_module("axolotl.utils.data.wrappers")
    plain: Any = import_module("axolotl.utils.dict").DictDefault
    said = schemas.AxolotlInputConfig(**written(tmp_path, rows)["axolotl"])
    settings = plain(said.model_dump(exclude_none=True))
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen3"))
    (source,) = settings.datasets
    table = datasets.load_dataset(
        "json", data_files=source.path, split="train", cache_dir=str(tmp_path / "cache")
    )
    kind = source.type if isinstance(source.type, str) else None
    made, _ = wrappers.get_dataset_wrapper(source, tokenizer, settings, kind, table)
    for theirs, (ids, labels) in zip(made, ours(tmp_path, tokenizer), strict=True):
        assert list(theirs["input_ids"]) == ids
        end = len(labels) - labels[::-1].index(tokenizer.eos_token_id)
        assert list(theirs["labels"]) == labels[:end] + [-100] * (len(labels) - end)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
def test_llamafactory_reads_it(
    rows: list[DatasetRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Callable[[str], Path],
) -> None:
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    hparams = pytest.importorskip("llamafactory.hparams", reason="llamafactory not installed")
    loader: Any = import_module("llamafactory.data")
    values = written(tmp_path, rows)["llamafactory"]
    values |= {"model_name_or_path": str(tiny_folder("qwen3")), "use_cpu": True}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, data, training, *_ = hparams.get_train_args(values)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen3"))
    parts = {"tokenizer": tokenizer, "processor": None}
    template = loader.get_template_and_fix_tokenizer(tokenizer, data)
    made = loader.get_dataset(template, model, data, training, stage="sft", **parts)[
        "train_dataset"
    ]
    bare = 0 if rows[0].chat else 1  # `empty` writes no end-of-text token
    for theirs, (ids, labels) in zip(made, ours(tmp_path, tokenizer), strict=True):
        assert list(theirs["input_ids"]) == ids[: len(ids) - bare]
        assert list(theirs["labels"]) == labels[: len(labels) - bare]


@pytest.mark.parametrize("rows", [RAW, CHAT], ids=["raw", "chat"])
def test_trl_trains_from_it(
    rows: list[DatasetRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Callable[[str], Path],
) -> None:
    """TRL's own `sft` command, from the data set's folder, as the file's first line says."""
    from trl.scripts import sft

    folder = tmp_path / "dataset"
    written(folder, rows)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    parsed = sft.make_parser().parse_args_and_config(
        [
            *("--config", "train_with/trl.yaml"),
            *("--model_name_or_path", str(tiny_folder("qwen3"))),
            *("--use_cpu", "true", "--output_dir", str(tmp_path / "out")),
        ],
        fail_with_unknown_args=True,
    )
    script, training, model, mixture = parsed
    assert (training.learning_rate, training.num_train_epochs) == (3e-4, 3)
    assert (model.lora_r, model.lora_alpha, model.use_peft) == (4, 12, True)
    sft.main(script, training, model, mixture)
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == RECIPE.total_steps(len(rows)) == 3
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    # the recipe's own schedule, step by step
    rates = [3e-4 * RECIPE.rate(step, 3) for step in range(3)]
    assert [entry["learning_rate"] for entry in logged] == pytest.approx(rates)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    moved = [tensor for name, tensor in adapter.items() if "lora_B" in name]
    assert any(torch.count_nonzero(tensor) for tensor in moved)
