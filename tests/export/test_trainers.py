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
from pyarrow import parquet
from safetensors.torch import load_file
from test_dataset import CARD, CHAT, RAW
from transformers import AutoTokenizer, Trainer, TrainingArguments

from nacd.commands.target import TrainConfig
from nacd.config.recipe import Recipe
from nacd.config.settings import from_dict
from nacd.data import make_template, read_examples
from nacd.export import (
    DatasetRow,
    made_in_order,
    own_recipe,
    read_otherwise,
    render_chosen_card,
    render_learned_card,
    write_dataset,
    write_trainers,
)
from nacd.model.lora import ModelConfig

ORDERED = Recipe(batch_size=2, shuffle=False)
RECIPE = Recipe(learning_rate=3e-4, batch_size=2, epochs=3, schedule="cosine", clip=0.5)
SGD = Recipe(optimizer="sgd", momentum=0.9, steps=7, schedule="constant", warmup=0.0)
MODEL = ModelConfig(model="owner/model", lora_rank=4, lora_alpha=12)

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def turns(spelt: str, content: str = "{role} {i}") -> DatasetRow:
    """A row of the turns that the letters name: `sua` is a system, a user and an answer turn."""
    messages = [
        {"role": ROLES[letter], "content": content.format(role=ROLES[letter], i=i)}
        for i, letter in enumerate(spelt)
    ]
    return DatasetRow(messages[:-1], messages[-1:], "mine.jsonl:1", "ab" * 32, 0.5)


IN_TURN = [turns(spelt) for spelt in ("ua", "sua", "uaua", "suaua")]
OUT_OF_TURN = [turns(spelt) for spelt in ("uua", "aua", "uasua", "ssua", "uaaua", "usua", "sasua")]
SPECIAL = [
    turns("sua", "<|im_end|>\n<|im_start|>assistant\n{i}</s>"),
    turns("ua", "  {i} \n\n"),
    turns("sua", "<think>\n{i}\n</think>\n\n你好 🙂"),
    turns("ua", "<image> {{content}} {i} <|im_start|>"),
]

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
    for rows, place in ((CHAT, "messages.parquet"), (RAW, "../train.parquet")):
        said = written(tmp_path, rows)["llamafactory"]
        folder = tmp_path / said["dataset_dir"]
        entry = json.loads((folder / "dataset_info.json").read_text())[said["dataset"]]
        assert entry["file_name"] == place
        assert set(entry["columns"].values()) <= set(parquet.read_schema(folder / place).names)
    assert [*(tmp_path / "train_with").glob("messages.*")] == []


def test_chat_rows_as_messages_train_on_the_last(tmp_path: Path) -> None:
    said = written(tmp_path, CHAT)["axolotl"]["datasets"][0]
    rows = parquet.read_table(tmp_path / said["path"]).to_pylist()
    lines = (tmp_path / "train_with" / "messages.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    for read, row in zip(rows, CHAT, strict=True):
        messages = read[said["field_messages"]]
        plain = [{k: m[k] for k in ("role", "content")} for m in messages]
        assert plain == [*row.prompt, *row.completion]
        marks = [m[said["message_field_training"]] for m in messages]
        assert marks == [False] * (len(messages) - 1) + [True]


@pytest.mark.parametrize("rows", [IN_TURN, SPECIAL, RAW], ids=["in turn", "special", "raw"])
def test_nothing_is_said_of_rows_that_are_read_whole(rows: list[DatasetRow]) -> None:
    assert read_otherwise(rows) == {"axolotl": [], "llamafactory": []}


@pytest.mark.parametrize(
    "row", OUT_OF_TURN, ids=lambda row: "".join(m["role"][0] for m in row.prompt)
)
def test_a_row_out_of_turn_is_counted(row: DatasetRow) -> None:
    said = read_otherwise([*IN_TURN, row])
    (line,) = said["llamafactory"]
    assert line.startswith("LLaMA-Factory leaves out 1 of 5 rows: ")
    assert said["axolotl"] == []


def test_other_rows_that_are_read_otherwise_are_counted() -> None:
    system = [{"role": "system", "content": ""}, {"role": "user", "content": "{{idx}}"}]
    answer = [{"role": "assistant", "content": "{{idx}}"}]
    empty = dataclasses.replace(CHAT[0], prompt=system)
    said = read_otherwise([*CHAT, empty, dataclasses.replace(CHAT[0], completion=answer)])
    assert said["llamafactory"] == [
        "LLaMA-Factory writes the template's own system turn, or none, in 1 of 4 rows, whose "
        "system turn is empty.",
        "LLaMA-Factory writes a number for `{{idx}}` in the prompts of 1 of 4 rows.",
    ]
    said = read_otherwise([*RAW, dataclasses.replace(RAW[0], prompt="")])
    (line,) = said["axolotl"]
    assert line == "Axolotl writes no BOS token before 1 of 3 rows, whose prompt is empty."
    said = read_otherwise([*RAW, dataclasses.replace(RAW[0], prompt="{{idx}} {{idx}}")])
    assert "1 of 3 rows" in said["llamafactory"][0]


def test_what_a_reader_leaves_out_stands_in_its_file_and_on_the_card(tmp_path: Path) -> None:
    rows = [*IN_TURN, *OUT_OF_TURN]
    written(tmp_path, rows)
    (line,) = read_otherwise(rows)["llamafactory"]
    assert "leaves out 7 of 11 rows" in line
    heads = {
        file.stem: [text[2:] for text in file.read_text().splitlines() if text.startswith("# ")]
        for file in (tmp_path / "train_with").glob("*.yaml")
    }
    assert {name for name, head in heads.items() if line in head} == {"llamafactory"}
    for card in (
        render_learned_card(CARD, rows),
        render_chosen_card(CARD, "random", rows, in_order=True),
    ):
        assert f"\n- {line}\n" in card
    assert "leaves out" not in render_learned_card(CARD, IN_TURN)


def test_no_trainer_goes_on_with_what_it_made_of_other_rows(tmp_path: Path) -> None:
    """LLaMA-Factory resumes from its output folder; Axolotl keeps prepared rows by settings."""

    def folders(rows: list[DatasetRow]) -> list[str]:
        said = written(tmp_path, rows)
        made = [said[name]["output_dir"] for name in said]
        return [*made, said["axolotl"]["dataset_prepared_path"]]

    first, other = folders(CHAT), folders(CHAT[::-1])
    assert len({*first, *other}) == 8
    assert folders(CHAT) == first
    assert all(folder.startswith("trained/") for folder in first)


def test_rows_of_any_tokenizer_have_room(tmp_path: Path) -> None:
    for rows in (
        [turns("sua", "🙂{i}" * 90)],
        [dataclasses.replace(RAW[0], completion="你" * 200)],
    ):
        said = written(tmp_path, rows)
        for room in (said["axolotl"]["sequence_len"], said["llamafactory"]["cutoff_len"]):
            assert room >= len("".join(rows[0].texts).encode()) + 64
    assert written(tmp_path, RAW)["trl"]["max_length"] is None


def test_the_order_is_told_from_any_file_of_the_rows(tmp_path: Path) -> None:
    files = ("", "train.jsonl", "train.parquet", "train_with/messages.jsonl")
    for recipe in (RECIPE, ORDERED):
        written(tmp_path, CHAT, recipe)
        assert {made_in_order(tmp_path / file) for file in files} == {not recipe.shuffle}
        own = tmp_path / "train_with" / "nacd.yaml"
        assert {own_recipe(tmp_path / file) for file in files} == {own}
        values = yaml.safe_load(own.read_text())
        config = from_dict(TrainConfig, values, "nacd.yaml")
        assert config.recipe == recipe
        assert config.model == dataclasses.replace(MODEL, model=ModelConfig().model)
    (tmp_path / "train_with" / "trl.yaml").write_text("a: [")
    assert not made_in_order(tmp_path)


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


ALL = [*IN_TURN, *OUT_OF_TURN, *SPECIAL]
LONG = [dataclasses.replace(RAW[0], prompt="The qui", completion="🙂" * 80)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [RAW, CHAT, ALL, LONG], ids=["raw", "chat", "odd", "long"])
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
        source.ds_type, data_files=source.path, split="train", cache_dir=str(tmp_path / "cache")
    )
    kind = source.type if isinstance(source.type, str) else None
    made, _ = wrappers.get_dataset_wrapper(source, tokenizer, settings, kind, table)
    for theirs, (ids, labels) in zip(made, ours(tmp_path, tokenizer), strict=True):
        assert list(theirs["input_ids"]) == ids
        end = len(labels) - labels[::-1].index(tokenizer.eos_token_id)
        assert list(theirs["labels"]) == labels[:end] + [-100] * (len(labels) - end)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [RAW, CHAT, ALL, LONG], ids=["raw", "chat", "odd", "long"])
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
    whole = [i for i, row in enumerate(rows) if row not in OUT_OF_TURN]
    said = ours(tmp_path, tokenizer)
    for theirs, (ids, labels) in zip(made, (said[i] for i in whole), strict=True):
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
