"""The experiments' grids, every stage of them, on tiny models of the same architectures."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from nacd.commands.compare import compare
from nacd.config.compare import CompareConfig
from nacd.config.settings import from_dict
from nacd.data import read_examples
from nacd.errors import UserError
from nacd.terminal.progress import Progress

FOLDER = Path(__file__).parents[1] / "experiments"
GRIDS = ("ladder", "mmlu", "paper_opt_to_llama")
QUIET = Progress(quiet=True)


def grid(name: str) -> CompareConfig:
    file = FOLDER / f"{name}.yaml"
    return from_dict(CompareConfig, yaml.safe_load(file.read_text()), str(file))


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which colour has the thing number {i}?",
            "choices": ["red", "green", "the answer", "blue"],
            "answer": i % 4,
            "subject": f"subject {i % 3}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("arc_challenge/train", 24), ("openbookqa/train", 30), ("mmlu/dev", 15)):
        write(folder / f"{name}.jsonl", questions(count))
    held = questions(60)[-24:]
    write(folder / "mmlu/validation.jsonl", held)
    rows = folder / "rows"
    command = [sys.executable, FOLDER / "mmlu_rows.py", "--data", folder, "--out", rows]
    subprocess.run(command, check=True, capture_output=True)
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def small(config: CompareConfig, data: Path, out: Path, model: Path) -> CompareConfig:
    """The same grid with a tiny model, few rows and few steps."""
    named = replace(
        config.data,
        data=str(data / "train.jsonl"),
        target=str(data / "target.jsonl"),
        heldout=str(data / "heldout.jsonl"),
    )
    # the one-sided engine is refused on tiny models, where it is wrong; what `auto` takes is right
    engine = "auto" if config.outer.engine == "auto" else "exact"
    return replace(
        config,
        out=out,
        trainings=min(2, config.distillations),
        distillations=min(2, config.distillations),
        budgets=("4",),
        tune_rates=config.tune_rates[:1],
        full_epochs=0.5,
        model=replace(config.model, model=str(model), lora_rank=2),
        data=named,
        recipe=replace(config.recipe, batch_size=2, epochs=2),
        expert=replace(config.expert, experts=1, expert_epochs=1, expert_batch=8),
        outer=replace(config.outer, outer_steps=1, check_trainings=1, engine=engine),
        selection=replace(config.selection, warmup_share=0.3, warmup_epochs=2, projection_dim=64),
    )


@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_can_be_run(name: str) -> None:
    config = grid(name)
    if not config.data.data:  # given on the command line
        config = replace(config, data=replace(config.data, data="train.jsonl"))
    config.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_every_stage_on_tiny_models(
    name: str, data: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = small(grid(name), data, tmp_path / "out", tiny_folder("opt"))
    config = replace(config, target_models=(str(tiny_folder("llama")),))
    result = compare(config, progress=QUIET)
    found = {(Path(row["target"]).name, row["method"]) for row in result.table}
    assert len(found) == len(result.table)
    assert not [row["why"] for row in result.table if "failed" in row]
    source = [row for row in result.table if row["target"] == config.model.model]
    assert {row["method"] for row in source} == {*config.methods, "full-equal-steps"}
    answered = {row["method"] for row in source if row["accuracy"] is not None}
    assert answered == set(config.accuracy)
    text = [row for row in result.table if row["method"] == "text"]
    assert len(text) == 2, "the source and the other architecture"
    assert all(row["boundaries_kept"] is not None for row in text)


@pytest.mark.slow
def test_mmlu_in_letters(data: Path, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    config = small(grid("mmlu"), data, tmp_path / "out", tiny_folder("llama"))
    config = replace(config, data=replace(config.data, choices="letter", max_tokens=128))
    table = compare(config, progress=QUIET).table
    assert not [row for row in table if "failed" in row]
    rows = (tmp_path / "out" / "distilled" / "4-0" / "seeds.json").read_text()
    assert len(json.loads(rows)["rows"]) == 4
    text = next(row for row in table if row["method"] == "text")
    assert 0 <= text["accuracy"] <= 1


def test_one_row_against_every_other(tmp_path: Path) -> None:
    nll = {"text": (2.0, 2.1, 2.2), "random": (2.5, 2.4, 2.6), "full": (1.5,)}
    cells = [
        {"target": "m", "budget": "4", "method": method, "seed": seed, "draw": 0, "report_nll": x}
        | {"row_nll": [x, x], "row_tokens": [1, 1]}
        for method, values in nll.items()
        for seed, x in enumerate(values)
    ]
    cells.append({"target": "m", "budget": "4", "method": "seeds", "failed": "no rows"})
    parquet.write_table(pyarrow.Table.from_pylist(cells), tmp_path / "results.parquet")
    command = [sys.executable, FOLDER / "against.py", tmp_path]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    half = 4.302653 * statistics.stdev((-0.5, -0.3, -0.4)) / math.sqrt(3)
    assert [line.split() for line in shown.splitlines()] == [
        ["m,", "budget", "4:", "text", "minus"],
        ["random", "-0.400", "±", f"{half:.3f}", "questions", "-0.400", "-0.400"],
        ["full", "+0.500", "questions", "+0.500", "+0.500"],
    ]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "results.parquet", other)
    command += ["--of", other, "--row", "full"]
    for run, rows in ((tmp_path, "5 rows, a"), (other, "5 rows, b")):
        (run / "provenance.json").write_text(json.dumps({"data": {"report": rows}}))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "its test rows are not those of" in refused.stderr
    shutil.copy(tmp_path / "provenance.json", other)
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["text", "-0.500", *["questions", "-0.500", "-0.500"]],
        ["random", "-1.000", *["questions", "-1.000", "-1.000"]],
        ["full", "+0.000", *["questions", "+0.000", "+0.000"]],
    ]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Runs an experiment's file in this process; what it wrote to stdout and to stderr."""
    monkeypatch.syspath_prepend(FOLDER)  # they share `stage.py`

    def run(name: str, *flags: str | Path) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        capsys.readouterr()
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr()

    return run


@pytest.fixture
def script(
    data: Path,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    run: Callable[..., tuple[str, str]],
) -> Callable[..., list[str]]:
    """Runs an experiment on a tiny model and four rows; its printed lines."""
    here, out = tmp_path / "data", tmp_path / "out"
    here.mkdir()
    shutil.copy(data / "train.jsonl", here / "train.jsonl")
    shutil.copy(data / "heldout.jsonl", here / "validation.jsonl")
    model = str(tiny_folder("llama"))

    def script(name: str, *flags: str) -> list[str]:
        own = ("--data", here, "--out", out, "--model", model, "--rows", "4")
        return run(name, *own, *flags)[0].splitlines()

    return script


@pytest.mark.slow
def test_which_objective_predicts_goes_on_where_it_stopped(
    script: Callable[..., list[str]], tmp_path: Path
) -> None:
    for draws in ("3", "5"):
        before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/**/*.json")}
        lines = script("predict.py", "--draws", draws, "--rows", "12")
        assert f"{draws} draws of 12" in lines[-1]
        assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    names = [line.split("  ")[0] for line in lines[1:-1]]
    assert names[0] == "target"
    assert len(names) > 1
    assert all(name.startswith(("train ", "matching ")) for name in names[1:])


@pytest.mark.slow
def test_the_gpu_script_goes_on_until_all_is_done(
    data: Path,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    run: Callable[..., tuple[str, str]],
) -> None:
    here, runs = tmp_path / "data", tmp_path / "runs"
    here.mkdir()
    shutil.copy(data / "train.jsonl", here / "train.jsonl")
    shutil.copy(data / "heldout.jsonl", here / "validation.jsonl")
    names = ["train-simplex", "trajectory-nearest"]
    command = ["--data", here, "--runs", runs, "--budget", "8", "--model", tiny_folder("llama")]
    command += ["--outer-steps", "2", "--seeds", "1", "--variants", *names]
    shown, said = run("gpu.py", *command, "--minutes", "0.005")
    assert "time is up; the same command goes on" in said
    assert len(shown.splitlines()) == 1, "a header and no rows"
    shown, _ = run("gpu.py", *command)
    lines = [line.split() for line in shown.splitlines()[1:]]
    assert {line[0] for line in lines} == {f"{name}-0" for name in names}
    text = [line for line in lines if line[1:3] == ["NACD", "text"] and "±" in line]
    assert text
    assert max(len(line) for line in shown.splitlines()) <= 90
    shown, _ = run("gpu.py", *command[:-2], "choices", "--budgets", "8")
    assert "labelled " in shown


@pytest.mark.slow
def test_soft_labels_are_held_against_hard_ones(script: Callable[..., list[str]]) -> None:
    flags = ("--rates", "1e-3", "--soft-rates", "2e-3", "--weights", "1", "--trainings", "2")
    flags += ("--kinds", "hard", "hard-all", "response", "all", "--top", "8")
    lines = script("soft_labels.py", *flags, "--expert-epochs", "1")
    pairs = [line.partition("  ")[0] for line in lines[-6:]]
    assert pairs[:2] == ["random: hard-all minus hard", "random: response minus hard"]
    assert pairs[-1] == "random: all minus response"
    assert all("±" in line for line in lines[-6:])
    assert script("soft_labels.py", *flags, "--expert-epochs", "1")[-6:] == lines[-6:]


@pytest.mark.slow
def test_which_inner_loop_survives_the_recipe(script: Callable[..., list[str]]) -> None:
    flags = ("--rows", "16", "--outer-steps", "2")
    lines = script("recipes.py", *flags)
    rows = [line.split() for line in lines[3:-1]]
    assert [" ".join(row[:-9]) for row in rows] == ["whole recipe", "windows of 4", "SGD, 4 steps"]
    figures = [[float(x.rstrip("%")) for x in row[-9:]] for row in rows]
    assert len({row[3] for row in figures}) == 1, "one final recipe on untouched starting rows"
    assert figures[0][0] == figures[0][3], "the whole recipe is the final one"
    timed = [line.rsplit(maxsplit=1)[0] for line in lines]
    again = [line.rsplit(maxsplit=1)[0] for line in script("recipes.py", *flags)]
    assert again == timed


@pytest.mark.slow
def test_what_prompts_can_carry(script: Callable[..., list[str]], tmp_path: Path) -> None:
    flags = ("--rows", "16", "--outer-steps", "3", "--swaps", "6", "--target-rows", "8")
    lines = script("capacity.py", *flags)
    names = [line[:20].strip() for line in lines[1:-1]]
    assert names[:-1] == ["seeds", "soft", "soft, its text", "simplex", "simplex, its text"]
    assert "6 swaps" in names[-1]
    files = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("out/*.json")}
    seeds = files["seeds"]["target"]
    assert files["nearest"]["soft"]["target"] < seeds, "free vectors overfit their own segment"
    assert files["swaps-6"]["text"]["target"] <= seeds, "a swap is kept only where it helps"
    assert script("capacity.py", *flags) == lines
    more = script("capacity.py", *flags, "--swaps", "8")  # goes on after the sixth
    assert more[:-2] == lines[:-2]
    assert len(json.loads((tmp_path / "out" / "tries.json").read_text())["tried"]) == 8
    with pytest.raises(UserError, match=r"outer\.outer_steps: 3 there, 4 now"):
        script("capacity.py", *flags, "--outer-steps", "4")


@pytest.mark.slow
def test_what_rows_are_worth_goes_on_where_it_stopped(
    script: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = ("--rows", "12", "--target-rows", "4")
    lines = script("worth.py", *flags)
    assert lines[0].startswith("probes 0 and 1: ")
    names = [line[:30].strip() for line in lines[2:]]
    assert names[0] == "random"
    assert len(names) == 8
    kept = {file.name for file in tmp_path.glob("out/*.json")}
    more = script("worth.py", *flags, "--repeats", "2")
    assert more[:2] == lines[:2]
    assert len({file.name for file in tmp_path.glob("out/*.json")} - kept) == 8


@pytest.mark.slow
def test_chosen_rows_against_random_ones(script: Callable[..., list[str]], tmp_path: Path) -> None:
    """The rows of a selection are found again by their digests, and the test rows are read."""
    examples = read_examples(str(tmp_path / "data" / "train.jsonl"))
    digests = [example.digest for example in examples]
    run = tmp_path / "chosen"
    (run / "selection").mkdir(parents=True)
    (run / "chosen.json").write_text(json.dumps({"digests": digests[:4]}))
    (run / "selection" / "start.json").write_text(json.dumps({"digests": [*digests[2:6], "gone"]}))
    flags = ("--target-rows", "4", "--of", str(run), "--trainings", "2", "--rates", "1e-3", "1e-2")
    lines = script("whole_rows.py", *flags)
    table = {line[:26].strip(): line[26:].split() for line in lines[-4:-1]}
    assert [*table] == ["random", "chosen", "chosen: starting rows"]
    name, against = lines[-1][:45].strip(), lines[-1][45:].split()
    assert name == "chosen minus chosen: starting rows"
    between = float(table["chosen"][0]) - float(table["chosen: starting rows"][0])
    assert float(against[0]) == pytest.approx(between, abs=2e-3)
    gap = float(table["chosen"][0]) - float(table["random"][0])
    assert float(table["chosen"][2]) == pytest.approx(gap, abs=2e-3)
    assert any("starting rows: " in line and "absent" in line for line in lines)
    assert len([*tmp_path.glob("out/tuning-*.json")]) == 2
    assert len([*tmp_path.glob("out/*-?.json")]) >= 6
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/*.json")}
    assert script("whole_rows.py", *flags)[-4:] == lines[-4:]
    assert {file: file.stat().st_mtime_ns for file in before} == before
