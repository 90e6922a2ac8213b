"""Cells of a grid that fail: shown, told apart from faults, made again; the others go on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_grid import grid

from nacd.cli import main
from nacd.commands.compare import compare
from nacd.comparison.grid import Grid
from nacd.comparison.rowset import Training
from nacd.comparison.text import lines
from nacd.errors import UserError
from nacd.terminal.progress import Progress

Folder = Callable[[str], Path]
QUIET = Progress(quiet=True)


def test_what_is_asked_for_later_may_fail_for_one_cell_alone(
    tiny_folder: Folder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text())
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid", methods=("zero-shot", "random"))
    config = replace(config, trainings=1, elsewhere=str(other))
    first = {row["method"]: row["elsewhere_nll"] for row in compare(config, progress=QUIET).table}
    other.write_text(rows.read_text().replace("colour", "kind of food"))
    second = {row["method"]: row["elsewhere_nll"] for row in compare(config, progress=QUIET).table}
    assert all(first[method] != second[method] for method in first), "the file is another one"

    def breaks(self: Grid, theta: Any) -> dict[str, Any]:
        if theta.any():
            raise RuntimeError("too long a question")
        return {"acc": 0.5, "lm_eval": "0", "shots": 0, "n": 4}

    monkeypatch.setattr(Grid, "_accuracy", breaks)
    asked = replace(config, accuracy=("zero-shot", "random"))
    found = {row["method"]: row for row in compare(asked, progress=QUIET).table}
    assert found["zero-shot"]["accuracy"] == 0.5
    assert "too long a question" in found["random"]["why"]


def test_a_failing_row_is_shown_and_the_others_go_on(
    tiny_folder: Folder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nacd.comparison.rowsets as module

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("the matrix fell over")

    real = module.choose_once
    monkeypatch.setattr(module, "choose_once", breaks)
    config = grid(
        tiny_folder("llama"), rows, tmp_path / "grid", methods=("zero-shot", "longest", "random")
    )
    result = compare(config, progress=QUIET)
    found = {row["method"]: row for row in result.table}
    assert found["longest"]["failed"] == 2
    assert "RuntimeError: the matrix fell over (a fault" in found["longest"]["why"]
    assert np.isfinite(found["random"]["report_nll"])
    assert any("failed: RuntimeError" in line for line in lines(result.table))
    (first,) = config.out.glob("cells/*/4/longest/0/failed.json")
    assert "the matrix fell over" in json.loads(first.read_text())["failed"]
    assert result.faults[0] == first.with_name("traceback.txt")
    assert len(result.faults) == 2
    assert "in breaks\n" in result.faults[0].read_text(), "where it happened"

    monkeypatch.setattr(module, "choose_once", real)
    again = compare(config, progress=QUIET)
    assert not again.faults
    assert "failed" not in {row["method"]: row for row in again.table}["longest"]
    assert not [*config.out.glob("cells/**/failed.json"), *config.out.glob("cells/**/traceback.*")]


@pytest.mark.parametrize(
    ("error", "why", "fault"),
    [
        (UserError("--budget 9: too many."), "--budget 9: too many.", False),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory (OutOfMemoryError); ", False),
        (MemoryError(), "out of memory (MemoryError); give a smaller --batch-size", False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory", False),
        (ConnectionError("no route"), "ConnectionError: no route", False),
        (KeyError("rows"), "KeyError: 'rows' (a fault of this program)", True),
        (AssertionError(), "AssertionError (a fault of this program)", True),
    ],
)
def test_only_what_nobody_expects_is_a_fault(
    error: Exception,
    why: str,
    fault: bool,
    tiny_folder: Folder,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = Grid._measure

    def breaks(self: Grid, training: Training, seed: int, *rest: Any) -> dict[str, Any]:
        if training.data is not None:
            raise error
        return measure(self, training, seed, *rest)

    monkeypatch.setattr(Grid, "_measure", breaks)
    file = tmp_path / "grid.yaml"
    file.write_text(
        "methods: [random, zero-shot]\nbudgets: ['4']\nseeds: 1\n"
        f"data: {{data: {rows}, target_rows: 6}}\nrecipe: {{batch_size: 2}}\n"
    )
    out = tmp_path / "grid"
    flags = f"--config {file} --model {tiny_folder('gpt2')} --out {out} --json"
    assert main(["compare", *flags.split()]) == (1 if fault else 0)
    printed, said = capsys.readouterr()
    table = {row["method"]: row for row in json.loads(printed)["table"]}
    assert table["random"]["why"].startswith(why)
    assert np.isfinite(table["zero-shot"]["report_nll"]), "the others go on"
    assert ("1 trainings failed by a fault of this program; its traceback: " in said) == fault
    traces = [file.read_text() for file in out.glob("cells/*/4/random/0/traceback.txt")]
    assert len(traces) == fault
    assert all("in breaks\n" in text for text in traces)


def test_a_training_that_diverges_is_a_failed_one(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid", methods=("zero-shot", "random"))
    wild = replace(config.recipe, optimizer="sgd", learning_rate=1e30, clip=0.0)
    result = compare(replace(config, recipe=wild), progress=QUIET)
    found = {row["method"]: row for row in result.table}
    assert found["random"]["failed"] == 2
    assert re.search(
        r"test rows is nan after 4 steps: .* --learning-rate 1e\+30; give a smaller",
        found["random"]["why"],
    )
    assert not result.faults
    json.loads(
        (config.out / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )


def test_a_cell_whose_rows_are_others_now_is_made_anew(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid", methods=("random", "longest"))
    before = {row["method"]: row["report_nll"] for row in compare(config, progress=QUIET).table}
    shortest = replace(config, out=tmp_path / "other", methods=("kcenter",))
    other = compare(shortest, progress=QUIET).table[0]["report_nll"]
    kept = tmp_path / "grid" / "choosing" / "4" / "longest" / "chosen.json"
    chosen = tmp_path / "other" / "choosing" / "4" / "kcenter" / "chosen.json"
    other_rows = json.loads(chosen.read_text())
    del other_rows["seal"]  # as a method of another version would have chosen
    kept.write_text(json.dumps(other_rows))
    times = {p: p.stat().st_mtime_ns for p in config.out.glob("cells/*/4/random/*/result.json")}
    after = {row["method"]: row["report_nll"] for row in compare(config, progress=QUIET).table}
    assert after == {"random": before["random"], "longest": other}
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    beyond = [row + 1 for row in other_rows["rows"]]
    kept.write_text(json.dumps(other_rows | {"rows": beyond}))
    fresh = {row["method"]: row for row in compare(config, progress=QUIET).table}
    assert fresh["longest"]["report_nll"] == other, "made of rows that cannot be had any more"


@pytest.mark.slow
def test_a_target_model_that_fails_is_shown_and_the_others_go_on(
    tiny_folder: Folder, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    config = grid(
        tiny_folder("llama"),
        rows,
        tmp_path / "grid",
        methods=("zero-shot", "random", "soft"),
        target_models=(str(broken), str(tiny_folder("opt"))),
    )
    table = compare(config, progress=Progress()).table
    shown = capsys.readouterr().err
    assert re.search(rf"target model {broken} cannot be used: .*\n(?s:.*)the grid: ", shown)
    found = {(Path(row["target"]).name, row["method"]): row for row in table}
    assert {method for name, method in found if name == "broken"} == {"zero-shot", "random"}
    assert found["broken", "random"]["failed"] == 2
    assert "no config.json" in found["broken", "random"]["why"]
    others = [row for (name, _), row in found.items() if name != "broken"]
    assert len(others) == 3 + 2
    assert all(np.isfinite(row["report_nll"]) for row in others)
    assert any(line.startswith("random           failed: ") for line in lines(table))
    assert len([*config.out.glob("cells/broken*/4/*/*/failed.json")]) == 3

    def figures(table: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
        return {(r["target"], r["method"]): r["report_nll"] for r in table if "report_nll" in r}

    shutil.copytree(tiny_folder("opt"), broken, dirs_exist_ok=True)
    mended = compare(config, progress=QUIET).table
    assert len(figures(mended)) == 3 + 2 + 2
    (broken / "config.json").unlink()
    assert figures(compare(config, progress=QUIET).table) == figures(mended), "what was made stays"
