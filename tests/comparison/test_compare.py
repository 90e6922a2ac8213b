"""The grid on tiny models of two architectures: every row, resuming, its table, wrong input."""

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
from pyarrow import parquet
from small_grid import grid

import nacd
from nacd.cli import main
from nacd.commands.compare import compare
from nacd.commands.runs import ShowConfig, show_text
from nacd.comparison.grid import Grid, folder_name
from nacd.comparison.text import lines
from nacd.config import OuterLoopConfig
from nacd.config.compare import ROWS
from nacd.config.recipe import Recipe
from nacd.distillation import stages as stages_module
from nacd.errors import UserError
from nacd.model.prepare import prepare
from nacd.terminal.progress import Progress
from nacd.training.halving import Tried
from nacd.training.tuning import TunedRecipe

Folder = Callable[[str], Path]
QUIET = Progress(quiet=True)


@pytest.mark.parametrize(
    ("source", "target"), [("opt", "llama"), pytest.param("llama", "opt", marks=pytest.mark.slow)]
)
def test_the_grid_and_its_resuming(
    source: str, target: str, tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    config = grid(
        tiny_folder(source), rows, tmp_path / "grid", target_models=(str(tiny_folder(target)),)
    )
    result = compare(config, progress=QUIET)
    found = {(Path(row["target"]).name, row["method"]): row for row in result.table}
    methods = ("zero-shot", "random", "seeds", "text", "full-equal-steps", "full")
    assert len(found) == 2 * len(methods)
    assert {row["method"] for row in result.table} == set(methods)
    assert all(np.isfinite(row["report_nll"]) for row in result.table)
    for row in result.table:  # rows that a training has seen, not those it could have
        seen = {"zero-shot": (0, 0), "full-equal-steps": (5, 8)}.get(row["method"], (4, 99))
        assert seen[0] <= row["rows"] <= seen[1]
    text = [row for row in result.table if row["method"] == "text"]
    assert all(0 < row["boundaries_kept"] <= 1 for row in text)
    assert text[0]["boundaries_kept"] == 1.0, "the source's own tokenizer keeps all"
    assert text[0]["minus_seeds"]["pairs"] == 2
    assert max(len(line) for line in lines(result.table)) <= 80
    cells = parquet.read_table(config.out / "results.parquet").to_pylist()
    assert len(cells) == 2 * (1 + 2 + 2 + 2 + 2 + 1)
    assert {cell["seed"] for cell in cells if cell["method"] == "random"} == {0, 1}

    page = result.report.read_text()
    assert page.count('id="chart-results-') == 2
    assert "NACD text" in page

    before = {p: p.stat().st_mtime_ns for p in config.out.glob("cells/**/result.json")}
    wider = replace(config, trainings=3, methods=(*config.methods, "random-prompts"))
    again = compare(wider, progress=QUIET)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items()), "no cell is made twice"
    assert {row["trainings"] for row in again.table if row["method"] == "seeds"} == {3}

    def figures(table: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, int]]:
        return {(r["target"], r["method"]): (r["report_nll"], r["trainings"]) for r in table}

    # fewer rows asked for: what is there stays in the table, and new rows are held against it
    one = compare(replace(config, methods=("longest",), target_models=()), progress=QUIET)
    assert figures(again.table).items() < figures(one.table).items()
    row = next(row for row in one.table if row["method"] == "longest")
    assert row["minus_seeds"]["pairs"] == 2
    assert json.loads((config.out / "results.json").read_text())["trainings"] == {
        "done": len(parquet.read_table(config.out / "results.parquet")),
        "of": len(before) + 2 * (3 + 4) + 2,
    }
    shutil.rmtree(config.out / "cells" / folder_name(str(config.model.model)) / "4" / "random")
    gone = compare(replace(config, methods=("longest",), target_models=()), progress=QUIET)
    assert figures(one.table).keys() - figures(gone.table).keys() == {
        (config.model.model, "random")
    }


def test_a_table_is_there_from_the_first_row_on(
    tiny_folder: Folder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("zero-shot", "random", "longest", "full")
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid", methods=methods)
    measure, left = Grid._measure, 4

    def killed(self: Grid, *args: Any) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(Grid, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(config, progress=QUIET)
    shown = show_text(ShowConfig(config.out))
    assert "comparing, 3 of 8 done" in shown, "the row that was under way is not counted"
    assert "random" in shown
    assert "longest" not in shown
    page = (config.out / "report.html").read_text()
    assert "Not ended: 3 of 8 trainings so far." in page

    left = 99
    compare(config, progress=QUIET)
    assert "compared" in show_text(ShowConfig(config.out)).splitlines()[0]
    assert "Not ended" not in (config.out / "report.html").read_text()

    left = 1  # one more seed is asked for, and killed again: the whole table stays until then
    with pytest.raises(KeyboardInterrupt):
        compare(replace(config, trainings=3), progress=QUIET)
    assert "longest" in show_text(ShowConfig(config.out))


@pytest.mark.slow
def test_a_finished_run_is_compared_without_distilling_anew(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid", methods=("seeds", "text"))
    distilled = replace(config.distillation(config.sizes[0], 3), out=tmp_path / "run")
    made = nacd.distill(distilled, progress=QUIET)
    learned = [
        tmp_path / "run" / "distill" / name for name in ("state.safetensors", "metrics.jsonl")
    ]
    before = [file.stat().st_mtime_ns for file in learned]
    compare(replace(config, methods=("zero-shot",)), progress=QUIET)  # --runs may come later
    result = compare(replace(config, runs=(str(tmp_path / "run"),)), progress=QUIET)
    assert [row["method"] for row in result.table] == ["zero-shot", "seeds", "text"]
    assert result.table[2]["tokens_changed"] == made.tokens_changed
    assert not (config.out / "distilled").exists()
    assert [file.stat().st_mtime_ns for file in learned] == before
    for change, key in (
        ({"budgets": ("5",)}, "budget: '4' there, '5' here"),
        ({"budgets": ("4", "5")}, "--runs is for one budget"),
        ({"recipe": replace(config.recipe, epochs=3.0)}, "recipe.epochs: 2.0 there, 3.0 here"),
    ):
        other = replace(config, runs=(str(tmp_path / "run"),), out=tmp_path / "other", **change)
        with pytest.raises(UserError, match=re.escape(key)):
            compare(other, progress=QUIET)
    with pytest.raises(UserError, match=r"--runs \(none\): the distilled rows in .* are of .*run;"):
        compare(config, progress=QUIET)
    rows_of = tmp_path / "run" / "dataset" / "train.jsonl"
    kept = rows_of.read_text()
    rows_of.write_text(kept.replace("thing", "think"))
    with pytest.raises(UserError, match=r"run: distilled anew since its rows were taken into"):
        compare(replace(config, runs=(str(tmp_path / "run"),)), progress=QUIET)
    rows_of.write_text(kept)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        compare(replace(config, runs=(str(tmp_path / "run"),)), progress=QUIET)
    with pytest.raises(UserError, match="no run folder"):
        compare(replace(config, runs=(str(tmp_path / "absent"),)), progress=QUIET)


def test_every_model_is_tuned_for_its_budget_and_all_methods_use_that(
    tiny_folder: Folder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[str, list[Any], list[Any]]] = []

    def tune(_: Any, sets: Any, judges: Any, recipe: Recipe, folder: Any, **named: Any) -> Any:
        def search() -> dict[str, Any]:
            searched.append((named["name"], [[*rows] for rows in sets], [*judges]))
            return {"epochs": len(searched), "learning_rate": 1e-3 * len(searched)}

        found = replace(recipe, **folder.once(named["name"], search))
        tried = (Tried(found.learning_rate, found.epochs, 2.0, 1),)
        return TunedRecipe(found, tried, True, len(judges), 0.0, ())

    monkeypatch.setattr(stages_module, "tune_recipe", tune)
    source, target = (str(tiny_folder(arch)) for arch in ("llama", "opt"))
    config = grid(Path(source), rows, tmp_path / "g", target_models=(target,), tune=True)
    config = replace(config, methods=("random",), trainings=1)
    steps = [(row["target"], row["steps"]) for row in compare(config, progress=QUIET).table]
    assert steps == [(source, 2), (target, 4)]
    named = [f"tuning/{folder_name(model)}-4" for model in (source, target)]
    assert [name for name, *_ in searched] == named
    for (_, sets, validation), model in zip(searched, (source, target), strict=True):
        prepared = prepare(replace(config.model, model=model), config.data)
        assert validation == [*prepared.development.rows]
        assert [len(own) for own in sets] == [4] * 4
        labelled = {prepared.template.encode(e, turns="last") for e in prepared.train.examples}
        assert all(row in labelled for own in sets for row in own)
    assert len({str(own) for own in searched[0][1]}) > 1, "several random draws"

    run = config.distillation(config.sizes[0], 0)
    run = replace(run, out=tmp_path / "run", tune=True, compare=())
    nacd.distill(run, progress=QUIET)  # three epochs
    taken = replace(config, target_models=(), methods=("text",), runs=(str(run.out),))
    (row,) = compare(replace(taken, out=tmp_path / "taken"), progress=QUIET).table
    assert row["steps"] == 6
    assert len(searched) == 3, "rows of a run are trained by the run's recipe"
    other = replace(taken, tune=False, out=tmp_path / "other")
    (row,) = compare(other, progress=QUIET).table
    assert "0.003 for 3 epochs" in row["why"]
    assert "give --tune, which takes the run's" in row["why"]


@pytest.mark.slow
def test_every_row_of_the_table(tiny_folder: Folder, rows: Path, tmp_path: Path) -> None:
    config = grid(
        *(tiny_folder("llama"), rows, tmp_path / "grid"),
        methods=ROWS,
        trainings=1,
        accuracy=("seeds",),
    )
    result = compare(config, progress=QUIET)
    found = {row["method"]: row for row in result.table}
    assert set(found) == {*ROWS, "full-equal-steps"}
    assert not [row for row in result.table if "failed" in row]
    assert 0 <= found["seeds"]["accuracy"] <= 1
    for method in ("less", "rds+", "kcenter", "trajectory", "text"):
        assert found[method]["choosing_flops"] > 0
    assert found["random"]["choosing_flops"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("magic",)}, "--methods magic: unknown; the rows are zero-shot"),
        ({"accuracy": ("magic",)}, "--accuracy magic: unknown"),
        ({"trainings": 0}, "--trainings 0: must be at least 1"),
        ({"budgets": ("200%",)}, "--budget 200%: over 100 %"),
        ({"methods": ()}, "--methods: name at least one row"),
        ({"start_by": "magic"}, "--start-by magic: unknown"),
        ({"methods": ("text", "seeds", "text")}, "--methods: text is named twice; name it once"),
        ({"budgets": ("4", "4")}, "--budgets: 4 is named twice"),
        ({"runs": ("a", "a")}, "--runs: a is named twice"),
        ({"target_models": ("b", "b")}, "--target-models: b is named twice (--model is a target"),
        ({"trainings": 5, "distillations": 2}, "--trainings 5 with 2 distillations: each is"),
        ({"trainings": 2, "distillations": 3}, "give --trainings 3."),
    ],
)
def test_wrong_input(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        grid(tmp_path, tmp_path / "rows.jsonl", tmp_path / "out", **changes).check()
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_command(
    tiny_folder: Folder, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "methods: [zero-shot, random]\nbudgets: ['4']\ntune_rates: [1e-3, 2e-3]\n"
        f"data: {{data: {rows}, target_rows: 6}}\nrecipe: {{batch_size: 2}}\n"
    )
    model, grid_folder = tiny_folder("llama"), tmp_path / "grid"
    flags = f"--config {file} --model {model} --trainings 2 --out {grid_folder}"
    assert main(["compare", *flags.split(), "--json"]) == 0
    out, shown = capsys.readouterr()
    assert [row["method"] for row in json.loads(out)["table"]] == ["zero-shot", "random"]
    assert "the grid: 3 trainings; about" in shown, "the cost, before anything runs"
    assert "learning rate 0.00" in shown
    assert "zero-shot" in shown
    assert "results.parquet" in shown
    assert main(["compare", *flags.split(), "--trainings", "3"]) == 0
    shown = capsys.readouterr().err
    assert "the grid: 4 trainings, 3 of them done; about" in shown
    assert "tuning" not in shown.split("to go")[1].split("training and measuring")[0]
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["grid", "compared"]
    assert main(["show", str(tmp_path / "grid")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown[1:])) <= 80
    names = [line[:17].strip() for line in shown]
    assert [name for name in names if name in ("zero-shot", "random")] == ["zero-shot", "random"]

    general = tmp_path / "general.jsonl"
    general.write_text('{"prompt": "Say the word ", "completion": "blue"}\n' * 3)
    assert main(["compare", *flags.split(), "--elsewhere", str(general)]) == 0
    shown = capsys.readouterr().err
    assert re.search(r"NLL on general.jsonl: zero-shot \d\.\d+, random \d", shown)
    cell = next((tmp_path / "grid").glob("cells/*/4/random/0/result.json"))
    made = cell.stat().st_mtime_ns
    assert main(["compare", *flags.split(), "--elsewhere", str(general)]) == 0
    assert cell.stat().st_mtime_ns == made, "measured once"
    assert "NLL on general.jsonl" in (tmp_path / "grid" / "report.html").read_text()
    assert main(["show", str(tmp_path / "grid"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"][0]["method"] == "zero-shot"


def test_cells_are_their_own_trainings(
    tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    outer = OuterLoopConfig(outer_steps=0, engine="exact")
    config = grid(
        tiny_folder("llama"),
        rows,
        tmp_path / "g",
        methods=("zero-shot", "random", "seeds", "seeds-shuffled"),
        outer=outer,
    )
    compare(config, progress=QUIET)
    cells = parquet.read_table(config.out / "results.parquet").to_pylist()
    nll = {(c["method"], c["seed"]): c["report_nll"] for c in cells}
    assert len(set(nll.values())) == len(nll) == 7
    p = prepare(config.model, config.data)
    total = n = 0
    p.model.write(p.model.zero_theta())
    for row in p.report.rows:
        with torch.no_grad():
            log = p.model.hf(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for i in range(1, len(row.ids)):
            if row.response[i]:
                total -= float(log[i - 1, row.ids[i]])
                n += 1
    assert nll["zero-shot", 0] == pytest.approx(total / n, rel=1e-5)
