"""What leaves no trace, what is never executed, and what is refused before memory is taken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nacd
from nacd.cli import main
from nacd.config import DataConfig, DistillConfig, ExpertConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.errors import UserError
from nacd.export import own_recipe
from nacd.model.lora import ModelConfig, load_model

Folder = Callable[[str], Path]

SECRETS = {
    name: f"planted-{name.lower()}-0123456789abcdef"
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "WANDB_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "GITHUB_TOKEN",
        "NACD_TEST_PASSWORD",
    )
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    rows = [{"instruction": f"Name thing {i}", "output": f"the name {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# --- secrets ----------------------------------------------------------------------------------


def test_no_secret_of_the_environment_is_in_an_artefact(
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    shared = f"--model {tiny_folder('gpt2')} --data {data} --budget 3 --template alpaca".split()
    distilled = "--lora-rank 2 --outer-steps 1 --agreement 0 --pool 0 --trainings 1 --engine exact"
    more = f"{distilled} --compare seeds text --track tensorboard --target-rows 4".split()
    for verb, *flags in (["distill", *more], ["select", "--method", "rds+", "--target-rows", "4"]):
        assert main([verb, *shared, *flags, "--out", str(tmp_path / "runs" / verb)]) == 0
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert len(files) > 30
    said = capfd.readouterr()
    places = {str(file): file.read_bytes() for file in files}
    places["terminal"] = (said.out + said.err).encode()
    for place, content in places.items():
        assert not [name for name, value in SECRETS.items() if value.encode() in content], place


# --- code -------------------------------------------------------------------------------------


def test_nothing_is_unpickled_and_no_code_of_a_checkpoint_is_run() -> None:
    """`weights_only` and `trust_remote_code` wherever a library would do otherwise."""
    source = Path(nacd.__file__).parent
    for file in source.rglob("*.py"):
        code = re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', file.read_text())  # messages name them
        # what the processes of one command send each other is no file, and from nobody else
        between = file.name == "processes.py"
        for call in re.findall(r"torch\.load\((.*)\)", code):
            assert "weights_only=True" in call or (between and "io.BytesIO(packed)" in call), file
        for call in re.findall(r"pickle\.(\w+)", code):
            assert call == "UnpicklingError", file
        assert "allow_pickle" not in code, file
        assert not re.search(r"trust_remote_code\s*=\s*(?!False)", code), file
        assert not re.search(r"(?<![.\w])(eval|exec)\(|os\.system|shell=True", code), file
        for loader in re.findall(r"yaml\.load\(.*Loader=(\w+)", code):
            assert loader == "_Loader", file  # a SafeLoader


# --- names that leave their folder ------------------------------------------------------------


def test_an_index_may_not_name_a_file_elsewhere(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    for name in ("../other.safetensors", str(tmp_path / "other.safetensors")):
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}})
        )
        with pytest.raises(UserError, match=r"index\.json: damaged .*leads out of the folder"):
            load_model(ModelConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("out: /etc\n", "out"),
        ("overwrite: true\n", "overwrite"),
        ("model: {model: owner/other}\n", r"model\.model"),
        ("data: {data: /etc/passwd}\n", r"data\.data"),
    ],
)
def test_a_data_sets_own_file_sets_its_training_alone(text: str, key: str, tmp_path: Path) -> None:
    rows, file = tmp_path / "train.jsonl", tmp_path / "train_with" / "nacd.yaml"
    file.parent.mkdir()
    rows.write_text("{}\n")
    file.write_text("recipe: {learning_rate: 0.1}\nmodel: {lora_rank: 4}\n")
    assert own_recipe(rows) == file
    file.write_text(text)
    with pytest.raises(UserError, match=rf"nacd\.yaml: sets {key}, .* take {key} out"):
        own_recipe(rows)


# --- sizes ------------------------------------------------------------------------------------

HUGE = 10**9
ABSURD: list[tuple[str, Any, str]] = [
    ("recipe", Recipe(batch_size=HUGE), "--batch-size 1000000000: must be at most 1,000,000"),
    ("recipe", Recipe(epochs=1e300), r"--epochs 1e\+300: must be at most"),
    ("recipe", Recipe(steps=HUGE), r"--steps 1e\+09: must be at most"),
    ("data", DataConfig(data="x.jsonl", max_tokens=HUGE), "--max-tokens 1000000000: must be"),
    ("model", ModelConfig(lora_rank=HUGE), "--lora-rank 1000000000: must be at most"),
    ("expert", ExpertConfig(experts=HUGE), "--experts 1000000000: must be at most"),
    ("expert", ExpertConfig(expert_steps=HUGE), r"--expert-steps 1e\+09: must be at most"),
    ("outer", OuterLoopConfig(pool=HUGE), "--pool 1000000000: must be at most"),
    ("outer", OuterLoopConfig(segments=HUGE), "--segments 1000000000: must be at most"),
    ("outer", OuterLoopConfig(learn="prefix:999999999"), "must be shorter than --max-tokens 512"),
    ("outer", OuterLoopConfig(learn="prefix:" + "9" * 5000), "must be shorter than --max-tokens"),
    ("trainings", HUGE, "--trainings 1000000000: must be at most"),
    ("full_epochs", 1e300, r"--full-epochs 1e\+300: must be above 0 and at most"),
    ("seed", -1, "--seed -1: must be at least 0 and below"),
    ("seed", 2**64, "--seed 18446744073709551616: must be at least 0"),
]


@pytest.mark.parametrize(("name", "value", "match"), ABSURD)
def test_absurd_sizes_are_refused_at_once(name: str, value: Any, match: str) -> None:
    config = replace(DistillConfig(data=DataConfig(data="x.jsonl")), **{name: value})
    with pytest.raises(UserError, match=match):
        config.check()


def test_a_training_that_never_ends_is_refused() -> None:
    with pytest.raises(UserError, match="--epochs 1000: 50000 rows make 6,250,000 optimiser steps"):
        Recipe(epochs=1000).check_rows(50_000)


def test_a_rank_above_the_width_and_sizes_above_the_weights_are_refused(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--lora-rank 309: the widest matrix .* has 308 columns"):
        load_model(ModelConfig(model=str(tiny_folder("llama")), lora_rank=309))
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    for key in ("vocab_size", "num_hidden_layers", "intermediate_size"):
        file.write_text(json.dumps(settings | {key: HUGE}))
        with pytest.raises(UserError, match=rf"{key} 1000000000.*far more than the [\d,]+ bytes"):
            load_model(ModelConfig(model=str(folder)))
