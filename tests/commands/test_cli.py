"""What a person meets at the command line: help, wrong inputs, interruptions."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from nacd.cli import VERBS, main, parse
from nacd.config import (
    DataConfig,
    DistillConfig,
    OuterLoopConfig,
    SelectionConfig,
    decided,
    with_judge,
)
from nacd.config.recipe import Recipe
from nacd.config.settings import from_dict
from nacd.errors import UserError

Folder = Callable[[str], Path]

ABSENT = "mps" if torch.cuda.is_available() else "cuda"

ROWS = "".join(
    json.dumps({"instruction": f"Name thing number {i}", "output": f"the name {i}"}) + "\n"
    for i in range(40)
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    file.write_text(ROWS)
    return file


def flags(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return (
        f"distill --model {model} --data {data} --out {out} --budget 3 --lora-rank 2 "
        "--batch-size 2 --outer-steps 2 --check-every 2 --trainings 1 --compare seeds text "
        "--target-rows 4 --engine exact --template alpaca"
    ).split() + list(more)


@pytest.mark.parametrize("verb", ["distill", "experts", "doctor", "train", "evaluate", "demo"])
def test_every_flag_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--model" in shown
    assert "Hub id, folder, GGUF file" in shown


@pytest.mark.parametrize("verb", [verb for verb, entry in VERBS.items() if entry.usual])
def test_help_has_the_usual_flags_and_an_example(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    named = re.findall(r"^\W (--[a-z-]+)", shown, re.MULTILINE)
    assert "--model" in named
    assert 10 <= len(named) <= 16
    if verb != "plan":  # which reads no data
        needed = re.split(r"\n\W --", shown[shown.index("--data STR") :])[0]
        assert ("(required)" in needed) == (verb != "evaluate")
    example = next(line for line in shown.splitlines() if line.startswith("  nacd "))
    assert max(map(len, shown.splitlines())) <= 80
    parse(verb, shlex.split(example)[2:])


def test_all_flags_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--help-all"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--budget", "--lora-alpha", "--rate-step-size", "--projection-dim", "(required"):
        assert flag in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["distil"], "no command 'distil'; did you mean distill?"),
        (["frobnicate"], "no command 'frobnicate'.\n"),
        (["distill", "--bugdet", "5%"], "--bugdet: no such flag; did you mean --budget?"),
        (["distill", "--learning_rat=1e-3"], "did you mean --learning-rate?"),
        (["check", "--no-tun"], "--no-tun: no such flag; did you mean --no-tune?"),
        (["distill", "--xyzzy"], "--xyzzy: no such flag.\n`nacd distill --help-all` lists"),
        (["distill", "--budget", "5", "%"], "%: belongs to no flag."),
    ],
)
def test_a_mistyped_word_is_told_the_nearest(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main(args) == 2
    assert said in capsys.readouterr().err


def test_settings_are_read_without_pytorch() -> None:
    code = (
        "import sys, nacd, nacd.config; from nacd.cli import VERBS\n"
        "kinds = [entry.kind()() for verb, entry in VERBS.items() if entry.usual]\n"
        "nacd.SelectConfig(data=nacd.DataConfig(data='mine.jsonl')).check()\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_usage_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "nacd distill --model smollm2 --data mine.jsonl" in shown
    assert max(map(len, shown.splitlines())) <= 80


def bad_line(text: str, number: int, line: str) -> str:
    lines = text.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["mine.jsonl", "no such file"]),
        ("", ["mine.jsonl", "empty"]),
        (bad_line(ROWS, 7, '{"instruction": "a'), ["mine.jsonl:7", "JSON"]),
        (bad_line(ROWS, 9, '{"instruction": "a", "output": ""}'), ["mine.jsonl:9", "response"]),
        ('{"a": 1, "b": 2}\n' * 20, ["columns `a`, `b`", "--columns", "messages"]),
    ],
)
def test_wrong_data_is_named(
    content: str | None,
    parts: list[str],
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        data.unlink()
    else:
        data.write_text(content)
    assert main(flags(tiny_folder("gpt2"), data, tmp_path / "run")) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    for part in parts:
        assert part in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--budget", "0"], "--budget 0"),
        (["--budget", "120%"], "over 100 %"),
        (["--budget", "30"], "30 rows asked for, but there are"),
        (["--outer-steps", "-1"], "--outer-steps -1"),
        (["--learn", "suffix:3"], "--learn suffix:3"),
        (["--compare", "less"], "--compare less"),
        (["--learning-rate", "0"], "--learning-rate 0"),
        (["--lora-targets", "nowhere"], "--lora-targets nowhere"),
        (["--device", ABSENT], f"--device {ABSENT}"),
        (["--expert-rate", "0"], "--expert-rate 0"),
        (["--snapshot-every", "0"], "--snapshot-every 0"),
        (["--columns", "prompt"], "--columns prompt"),
        (["--max-tokens", "5"], "--max-tokens"),
        (
            ["--target-rows", "0", "--objective", "target-loss"],
            "--objective target-loss needs target rows",
        ),
        (["--budget", "100%"], "looks at training rows that are not starting rows"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
    ],
)
def test_a_wrong_flag_is_named(
    more: list[str],
    part: str,
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(tiny_folder("gpt2"), data, tmp_path / "run", *more)) == 1
    shown = capsys.readouterr().err
    assert part in shown
    assert "Traceback" not in shown


def test_a_model_that_is_not_there(
    data: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(tmp_path / "nothing", data, tmp_path / "run")) == 1
    assert "not a model folder" in capsys.readouterr().err
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder("gpt2"), bare, ignore=shutil.ignore_patterns("tokenizer*"))
    assert main(flags(bare, data, tmp_path / "run2")) == 1
    assert "the folder has no tokenizer" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(flags(empty, data, tmp_path / "run3")) == 1
    assert "no config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_replays_from_its_yaml(data: Path, tiny_folder: Folder, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(flags(tiny_folder("gpt2"), data, first)) == 0
    assert main(["distill", "--config", str(first / "run.yaml"), "--out", str(second)]) == 0
    a, b = ((f / "dataset" / "train.jsonl").read_text() for f in (first, second))
    assert a == b
    settings = [yaml.safe_load((f / "run.yaml").read_text()) for f in (first, second)]
    for setting in settings:
        setting.pop("out")
    assert settings[0] == settings[1]


def test_a_config_that_leaves_settings_out_has_the_commands_own() -> None:
    read = from_dict(DistillConfig, {"recipe": {"batch_size": 8}}, "run.yaml")
    assert read.recipe == Recipe(batch_size=8, shuffle=True)
    assert DistillConfig().recipe == Recipe(shuffle=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "budget: 5%\nouter:\n  stepsize: 3\n",
            "outer: unknown key stepsize; known: objective",
        ),
        ("learning_rate: 1e-3\n", "unknown key learning_rate; it stands under `recipe:`."),
        ("recipe: {optimizer: adam}\n", "recipe: optimizer: 'adam': must be 'adamw' or 'sgd'."),
        (
            "outer: {engine: first_order}\n",
            "must be 'auto', 'exact', 'first-order', 'one-sided'",
        ),
        ("outer: {outer_steps: 12.5}\n", "outer_steps: 12.5: must be a valid integer."),
        ("trainings: five\n", "trainings: 'five': must be a valid integer."),
        ("recipe: {learning_rate: fast}\n", "learning_rate: 'fast': must be a valid number."),
        ("data: rows.jsonl\n", "data: 'rows.jsonl': must hold settings of its own, as in run.yaml"),
    ],
)
def test_a_wrong_config_is_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert main(["distill", "--config", str(file)]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith(f"nacd distill: {file}")
    assert shown.count("\n") == 1


def test_what_yaml_reads_as_another_type() -> None:
    read = from_dict(
        DistillConfig,
        {"budget": 112, "compare": "random", "tune_rates": ["1e-3"], "recipe": {"clip": "5e-1"}},
        "run.yaml",
    )
    assert (read.budget, read.compare, read.tune_rates) == ("112", ("random",), (1e-3,))
    assert read.recipe.clip == 0.5


def test_the_objective_is_where_the_rows_are() -> None:
    named, unnamed = DataConfig(target="target.jsonl"), DataConfig()
    assert decided(OuterLoopConfig(), named).objective == "target-loss"
    assert decided(OuterLoopConfig(), unnamed).objective == "train-loss"
    asked = OuterLoopConfig(objective="trajectory")
    assert decided(asked, named) is asked


def test_draws_are_judged_where_the_rows_are() -> None:
    named, unnamed = DataConfig(target="target.jsonl"), DataConfig()
    assert with_judge(SelectionConfig(), named).judge == "target"
    assert with_judge(SelectionConfig(), unnamed).judge == "train"
    asked = SelectionConfig(judge="train")
    assert with_judge(asked, named) is asked


def test_a_wrong_value_in_python() -> None:
    data = DataConfig(data="rows.jsonl")
    wrong = OuterLoopConfig(objective="target_loss")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="--objective target_loss: must be 'auto', 'target-loss'"):
        DistillConfig(data=data, outer=wrong).check()


def test_a_run_that_made_nothing_takes_the_mended_flags(
    data: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "run", tiny_folder("gpt2")
    assert main(flags(tmp_path / "absent", data, out)) == 1
    assert main(flags(model, data, out, "--budget", "99999")) == 1
    assert "--budget 99999: 99999 rows asked for" in capsys.readouterr().err
    assert main(flags(model, data, out, "--outer-steps", "1")) == 0
    assert main(flags(model, data, out, "--outer-steps", "2")) == 1
    assert "outer.outer_steps: 1 there, 2 now" in capsys.readouterr().err


def test_a_full_disk_and_ctrl_c_lose_nothing(
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = flags(tiny_folder("gpt2"), data, tmp_path / "run", "--pool", "0", "--agreement", "0")
    save, calls = safetensors.torch.save_file, 0

    def full(*a: object, **k: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*a, **k)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        assert main(args) == 1
    shown = capsys.readouterr().err
    assert "state.safetensors: the disk is full" in shown
    assert "run the same command again" in shown
    state = (tmp_path / "run" / "distill" / "state.safetensors").read_bytes()
    assert state
    calls = 0

    def interrupted(*a: object, **k: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", interrupted)
        assert main(args) == 130
    assert "the same command goes on" in capsys.readouterr().err

    def too_much(*a: object, **k: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", too_much)
        assert main(args) == 1
    assert "the device is out of memory. What is done is kept." in capsys.readouterr().err
    assert (tmp_path / "run" / "distill" / "state.safetensors").read_bytes() == state
    assert not list((tmp_path / "run" / "distill").glob(".*partial*"))
    assert main(args) == 0


@pytest.mark.slow
def test_distilled_rows_train_another_model(
    data: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "target"
    assert main(flags(tiny_folder("llama"), data, run, "--no-shuffle", "--json")) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["dataset"] == str(run / "dataset")
    assert {"seeds", "text"} <= {row["method"] for row in made["table"]}
    other = str(tiny_folder("gpt2"))
    rows = str(run / "dataset" / "train.jsonl")
    recipe = ["--batch-size", "2", "--epochs", "4", "--lora-rank", "4", "--learning-rate", "0.01"]
    train = ["train", "--model", other, "--data", rows, "--out", str(out), *recipe]
    capsys.readouterr()
    assert main(train) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "rows in their order, adamw at 0.01, 4 epochs, batches of 2" in said
    assert "made to be trained on in their own order" not in said
    assert main([*train, "--shuffle"]) == 1, "nothing is written over unasked"
    assert "--overwrite" in capsys.readouterr().err
    assert main([*train, "--shuffle", "--overwrite", "--json"]) == 0
    shown = capsys.readouterr()
    assert "made to be trained on in their own order" in " ".join(shown.err.split())
    trained = json.loads(shown.out)
    assert trained["adapter"] == str(out / "adapter")
    assert len(trained["losses"]) == 8
    questions = tmp_path / "questions.jsonl"
    question = {"question": "Which?", "choices": ["the name 1", "a plant"], "answer": 0}
    questions.write_text((json.dumps(question) + "\n") * 3)
    capsys.readouterr()
    figures = {}
    for adapter in ([], ["--adapter", str(out / "adapter")]):
        more = ["--data", str(questions), "--lora-rank", "4", *adapter]
        assert main(["evaluate", "--model", other, *more]) == 0
        figures[bool(adapter)] = json.loads(capsys.readouterr().out)
    assert figures[False]["response_nll_per_token"] != figures[True]["response_nll_per_token"]
    for figure in figures.values():
        assert figure["rows"] == 3
        assert figure["accuracy"]["n"] == 3
        assert figure["accuracy"]["lm_eval"]
        assert figure["warning"].startswith("Only 3 test rows"), "said beside the figure"
        assert figure["response_nll_95"] >= 0
    wrong = ["evaluate", "--model", other, "--data", str(questions), "--lora-rank", "2"]
    assert main([*wrong, "--adapter", str(out / "adapter")]) == 1
    assert "give --lora-rank 4" in capsys.readouterr().err


def test_the_doctor_compares_and_estimates(
    data: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = flags(tiny_folder("gpt2"), data, tmp_path / "run")
    assert main(["doctor", *args[1:]]) == 0
    shown = capsys.readouterr().out
    assert "Use --engine" in shown
    assert "memory: about" in shown
    assert "meta-gradients of 3 inner loops" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["doctor", *args[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["diagnosis"]["verdict"]["engine"] in shown
    assert found["estimate"]["inner_steps"] > 0
    assert len(found["agreement"]["cosines"]) == 3
    assert not (tmp_path / "run").exists()
