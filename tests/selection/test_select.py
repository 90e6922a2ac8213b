"""`nacd select` and `nacd distill --start-by`, from the command line to the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

import nacd
from nacd import selection
from nacd.cli import main
from nacd.config import DataConfig, DistillConfig
from nacd.data import read_examples, template
from nacd.model.prepare import prepare
from nacd.selection import METHODS, choice, copies, rounds
from nacd.store import spool

Folder = Callable[[str], Path]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty-eight rows of two kinds, every one a row of its own."""
    file = tmp_path / "mine.jsonl"
    lines = [
        {
            "instruction": f"{'Name the colour of' if i % 3 else 'Spell'} thing number {i}",
            "output": "the answer " * (i % 5) + f"is {i}",
            "kind": "colour" if i % 3 else "spelling",
        }
        for i in range(48)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def flags(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return (
        f"select --model {model} --data {data} --out {out} --budget 6 --lora-rank 2 "
        "--batch-size 4 --target-rows 5 --template alpaca --projection-dim 64 --warmup-epochs 2 "
        "--warmup-share 0.3 --minutes 0.001"
    ).split() + list(more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("method", METHODS)
def test_from_a_file_to_chosen_rows(
    method: str,
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    args = flags(tiny_folder("llama"), data, out, "--method", method, "--no-shuffle")
    assert main(args) == 0
    assert f"{method} chose 6 of" in " ".join(capsys.readouterr().err.split())
    loaded: Any = datasets.load_dataset(
        str(out / "dataset"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    source = {e.digest: e for e in read_examples(str(data))}
    results = json.loads((out / "results.json").read_text())
    assert len(loaded) == 6
    assert len({row["seed_digest"] for row in loaded}) == 6
    for row, told in zip(loaded, results["rows"], strict=True):
        example = source[row["seed_digest"]]
        text = f"### Instruction:\n{example.prompt}\n\n### Response:\n{example.response}"
        assert row["prompt"] + row["completion"] == text
        assert row["tokens_changed"] == 0
        assert told["source"] == example.source
        assert row["seed_row"] == Path(example.source).name, "no folders of this machine go out"
        assert told["digest"] == example.digest
    assert results["method"] == method
    assert results["tokens"] == sum(row["tokens"] for row in results["rows"])
    assert results["seconds"] >= 0
    assert (results["flops"] > 0) == (method not in ("random", "longest", "bm25"))
    scored = {row["score"] is not None for row in results["rows"]}
    assert METHODS[method].anytime or scored == {method not in ("random", "best-of", "kcenter")}
    card = (out / "dataset" / "README.md").read_text()
    assert f"real rows, chosen by {method}" in card
    assert METHODS[method].about in card
    assert ("no swap was better than the starting rows" in card) == (method == "swaps")
    # without shuffling a draw is trained on in its order; "best first" is no order to train in
    drawn = method in ("random", "best-of")
    assert ("in the order of the draw" in card) == drawn == ("best first" not in card)
    assert (
        "train_sampling_strategy" in (out / "dataset" / "train_with" / "trl.yaml").read_text()
    ) == drawn
    # The same command again chooses nothing anew, and leaves every file as it is.
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "choose", None)
        (out / "results.json").unlink()
        assert main(args) == 0
    assert contents(out) == before


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        (["--method", "random"], (48, 0, 0, 0)),
        (["--method", "bm25"], (43, 5, 0, 0)),
        (["--method", "longest", "--hold-out"], (28, 5, 5, 10)),
    ],
)
def test_rows_are_set_aside_where_something_looks_at_them(
    more: list[str],
    sizes: tuple[int, ...],
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(tiny_folder("llama"), data, tmp_path / "run", *more)) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert tuple(results["sizes"].values()) == sizes
    said = " ".join(capsys.readouterr().err.split())
    assert ("10 test rows: nacd evaluate --data" in said) == ("--hold-out" in more)
    assert ("No rows were held out" in said) == ("--hold-out" not in more)


@pytest.mark.parametrize("method", ["random", "longest", "bm25"])
def test_no_weights_are_read_where_none_are_needed(
    method: str,
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), model)
    (model / "model.safetensors").write_bytes(b"no weights")
    args = flags(model, data, tmp_path / "whole", "--method", method, "--dedup", "0.9")
    assert main(args) == 0
    # the same bytes, whatever is kept in memory and whatever lies in files
    for module, name, size in (
        (spool, "BUFFER", 64),
        (template, "BLOCK", 5),
        (copies, "FRESH", 30),
    ):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(rounds, "FIRST", 1)
    assert main([str(tmp_path / "parts") if a == str(tmp_path / "whole") else a for a in args]) == 0
    whole, parts = (contents(tmp_path / name / "dataset") for name in ("whole", "parts"))
    assert whole == parts
    capsys.readouterr()
    assert main(flags(model, data, tmp_path / "other", "--method", "rds+")) == 2
    assert "model.safetensors: damaged" in capsys.readouterr().err


def test_what_a_reader_leaves_out_is_said_whatever_the_file_is_called(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / 'notes: "v2" #1 | [draft] <b>.jsonl'
    roles = ["user", "user", "assistant"]
    rows = [[{"role": role, "content": f"{role} {i} ---"} for role in roles] for i in range(48)]
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    out = tmp_path / "run"
    args = flags(tiny_folder("qwen3"), data, out, "--method", "random", "--template", "chat")
    args[args.index("--data") + 1 : args.index("--out")] = [str(data)]  # the name has spaces
    assert main(args) == 0
    said = "LLaMA-Factory leaves out 6 of 6 rows"
    assert capsys.readouterr().err.count(said) == 1
    card = (out / "dataset" / "README.md").read_text()
    assert said in card
    assert f"`{data.name}`" in card
    assert f"# {said}" in (out / "dataset" / "train_with" / "llamafactory.yaml").read_text()
    loaded: Any = datasets.load_dataset(str(out / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert [row["seed_row"].partition(".jsonl")[0] for row in loaded["train"]] == [data.stem] * 6


def test_a_killed_choice_goes_on(
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [
        flags(tiny_folder("gpt2"), data, tmp_path / name, "--method", "kcenter")
        for name in ("whole", "killed")
    ]
    assert main(runs[0]) == 0

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(choice, "take", killed)
        assert main(runs[1]) == 130
    assert list((tmp_path / "killed" / "selection").glob("hidden-train-*"))
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert shown == [["killed", "choosing"], ["whole", "6", "rows", "by", "kcenter"]]
    assert main(["show", str(tmp_path / "whole"), "--rows", "2"]) == 0
    assert capsys.readouterr().out.count("\n  text  ") == 2
    assert main(runs[1]) == 0
    a, b = ((tmp_path / n / "dataset" / "train.jsonl").read_bytes() for n in ("whole", "killed"))
    assert a == b


def test_filters_and_budgets(data: Path, tiny_folder: Folder, tmp_path: Path) -> None:
    model = tiny_folder("gpt2")
    more = ["--method", "random", "--stratify", "--group-column", "kind", "--dedup", "0.9"]
    assert main(flags(model, data, tmp_path / "a", *more, "--budget", "25%")) == 0
    lines = (tmp_path / "a" / "dataset" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    sizes = json.loads((tmp_path / "a" / "results.json").read_text())["sizes"]
    assert len(rows) == round(sizes["train"] / 4)
    spelling = sum("Spell" in row["prompt"] for row in rows)
    assert spelling == pytest.approx(
        len(rows) / 3, abs=1.5
    )  # a third of the file; less so of train
    assert "in proportion by | `kind`" in (tmp_path / "a" / "dataset" / "README.md").read_text()
    assert main(flags(model, data, tmp_path / "b", "--method", "longest", "--budget", "400t")) == 0
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert 250 < results["tokens"] <= 400


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--method", "best"], "--method best: unknown; the methods are random, best-of"),
        (["--budget", "0"], "--budget 0"),
        (["--budget", "200"], "--budget 200: 200 rows asked for"),
        (["--dedup", "2"], "--dedup 2: a similarity"),
        (["--stratify"], "--group-column"),
        (["--stratify", "--group-column", "topic"], "topic"),
        (["--method", "rds+", "--target-rows", "0"], "--method rds+: needs target rows"),
        (
            ["--method", "best-of", "--judge", "target", "--target-rows", "0"],
            "--method best-of: needs target rows",
        ),
        (["--max-tokens", "5"], "--max-tokens"),
        (["--learning-rate", "0"], "--learning-rate 0"),
        (["--data", ""], "--data is missing"),
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
    assert part in " ".join(shown.split())
    assert "Traceback" not in shown


def test_another_method_needs_another_folder(
    data: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = flags(tiny_folder("gpt2"), data, tmp_path / "run")
    assert main([*args, "--method", "longest", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["method"] == "longest"
    assert len(made["rows"]) == 6
    assert main([*args, "--method", "random"]) == 1
    assert "method: 'longest' there, 'random' now" in capsys.readouterr().err


def test_select_replays_from_its_yaml_and_from_python(
    data: Path, tiny_folder: Folder, tmp_path: Path
) -> None:
    assert main(flags(tiny_folder("gpt2"), data, tmp_path / "a", "--method", "kcenter")) == 0
    config = str(tmp_path / "a" / "run.yaml")
    assert main(["select", "--config", config, "--out", str(tmp_path / "b")]) == 0
    result = nacd.select(
        nacd.SelectConfig(
            out=tmp_path / "c",
            method="kcenter",
            budget="6",
            model=nacd.ModelConfig(model=str(tiny_folder("gpt2"))),
            data=nacd.DataConfig(data=str(data), target_rows=5, template="alpaca"),
        )
    )
    assert "kcenter chose 6 of" in result.summary
    texts = {(tmp_path / n / "dataset" / "train.jsonl").read_bytes() for n in ("a", "b", "c")}
    assert len(texts) == 1
    assert selection.choose is choice.choose


# distill --start-by


def distilling(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return (
        f"distill --model {model} --data {data} --out {out} --budget 3 --lora-rank 2 "
        "--batch-size 2 --outer-steps 2 --check-every 2 --trainings 1 --compare seeds text "
        "--target-rows 4 --engine exact --template alpaca"
    ).split() + list(more)


def seeds_of(out: Path) -> list[str]:
    lines = (out / "dataset" / "train.jsonl").read_text().splitlines()
    return [json.loads(line)["seed_digest"] for line in lines]


def test_starting_rows_by_a_method(
    data: Path, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folder("gpt2")
    args = distilling(model, data, tmp_path / "run", "--start-by", "kcenter")
    assert main(args) == 0
    kept = json.loads((tmp_path / "run" / "seeds.json").read_text())
    assert kept["method"] == "kcenter"
    assert sorted(kept["digests"]) == sorted(seeds_of(tmp_path / "run")), "the order is no ranking"
    assert (
        "| starting rows chosen by | kcenter |"
        in (tmp_path / "run" / "dataset" / "README.md").read_text()
    )
    more = ["--method", "kcenter", "--budget", "3", "--target-rows", "4", "--hold-out"]
    assert main(flags(model, data, tmp_path / "select", *more)) == 0
    assert seeds_of(tmp_path / "select") == kept["digests"]
    with monkeypatch.context() as patch:  # going on reads the choice
        patch.setattr(choice, "choose", None)
        assert main(args) == 0


def test_random_seeds_are_those_of_old(data: Path, tiny_folder: Folder, tmp_path: Path) -> None:
    """`default_rng((seed, 17))` permutes the training rows; the first are the seeds."""
    model = tiny_folder("gpt2")
    assert main(distilling(model, data, tmp_path / "run", "--seed", "4")) == 0
    settings = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert settings["start_by"] == "random"
    prepared = prepare(
        nacd.ModelConfig(model=str(model)),
        DataConfig(data=str(data), target_rows=4, template="alpaca"),
    )
    order = np.random.default_rng((4, 17)).permutation(len(prepared.train))
    expected = [prepared.train.examples[i].digest for i in order[:3]]
    assert seeds_of(tmp_path / "run") == expected
    assert DistillConfig().start_by == "random"


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (
            ["--start-by", "best"],
            "--start-by best: unknown; the methods are random, best-of, swaps, winnow, longest",
        ),
        (
            ["--start-by", "rds+", "--target-rows", "0", "--objective", "trajectory"],
            "--start-by rds+: needs target rows",
        ),
        (["--start-by", "longest", "--stratify"], "--stratify: no row has a group"),
    ],
)
def test_wrong_seeds_are_named(
    more: list[str],
    part: str,
    data: Path,
    tiny_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(distilling(tiny_folder("gpt2"), data, tmp_path / "run", *more)) == 1
    shown = capsys.readouterr().err
    assert part in " ".join(shown.split())
    assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()


def test_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["select", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--method", "--budget", "--dedup", "--stratify", "--group-column"):
        assert flag in shown
    assert all(method in shown for method in METHODS)
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert "  select " in usage
    assert max(map(len, usage.splitlines())) <= 80
