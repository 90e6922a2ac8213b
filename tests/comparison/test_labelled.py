"""The row `labelled` of a comparison: its teacher, its rows, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_grid import grid

from nacd.commands.compare import compare
from nacd.comparison.cost import forecast
from nacd.comparison.labelled import teacher_file
from nacd.config.recipe import Recipe
from nacd.data.rows import Rows
from nacd.data.soft_labels import SoftLabels
from nacd.distillation.learn import draw
from nacd.errors import UserError
from nacd.model.prepare import prepare, read_splits
from nacd.model.teacher import expectations
from nacd.store.files import read_tensors
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.student import EXPERT_SEED, train_student

QUIET = Progress(quiet=True)


def test_random_rows_with_the_labels_of_a_teacher(
    tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    model, other = str(tiny_folder("llama")), str(tiny_folder("opt"))
    config = grid(
        Path(model),
        rows,
        tmp_path / "grid",
        methods=("random", "labelled"),
        trainings=1,
        label_rate=2.0,
        full_epochs=2.0,
    )
    found = {row["method"]: row for row in compare(config, progress=QUIET).table}
    assert found["labelled"]["tokens"] == found["random"]["tokens"], "the same rows"
    assert found["labelled"]["minus_random"]["pairs"] == 1

    # the same by hand: a teacher on all rows, its labels of the draw, a student at twice the rate
    prepared = prepare(config.model, config.data, lambda line: None, read_splits(config.data))
    pad = prepared.model.tokenizer.pad_token_id
    recipe = replace(config.recipe, shuffle=True)
    whole = Rows.of(prepared.train.rows, pad)
    teacher = train_student(prepared.model, recipe, whole, EXPERT_SEED)
    kept, _ = read_tensors(config.out / teacher_file(model))
    torch.testing.assert_close(kept["theta"], teacher)
    drawn = [
        prepared.template.as_exported(prepared.train.examples[i])
        for i in draw(prepared.train, config.sizes[0], 10_000)
    ]
    prepared.model.write(teacher)
    soft = SoftLabels([row.ids for row in drawn], expectations(prepared.model, drawn, 64))
    student = train_student(
        prepared.model,
        replace(recipe, learning_rate=2 * recipe.learning_rate),
        Rows.of(drawn, pad, soft),
        0,
    )
    nll = response_nll(prepared.model, student, prepared.report.rows).mean
    assert found["labelled"]["report_nll"] == pytest.approx(nll, rel=1e-5)

    # another target has a teacher of its own, and the first one's is not trained again
    per_token = {model: 1.0, other: 1.0}
    left = forecast(config, prepared, per_token, Recipe(), folder=config.out)
    assert [name for name in left.before if "teacher" in name] == [
        f"training a teacher of {Path(other).name}"
    ]
    stamp = (config.out / teacher_file(model)).stat().st_mtime_ns
    compare(replace(config, trainings=2, target_models=(other,)), progress=QUIET)
    assert (config.out / teacher_file(model)).stat().st_mtime_ns == stamp
    assert (config.out / teacher_file(other)).is_file()
    cell = next(config.out.glob("cells/*/4/labelled/1/result.json"))
    assert json.loads(cell.read_text())["learning_rate"] == pytest.approx(1e-2)


def test_a_rate_of_no_use_is_refused(
    tiny_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid", label_rate=0.0)
    with pytest.raises(UserError, match="--label-rate 0: must be above 0"):
        compare(config, progress=QUIET)


def test_the_other_rows_go_on_without_a_teacher(
    tiny_folder: Callable[[str], Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(*_: object) -> None:
        raise UserError("no room for a teacher")

    monkeypatch.setattr("nacd.comparison.labelled.train", dies)
    model = tiny_folder("llama")
    config = grid(model, rows, tmp_path / "grid", methods=("labelled", "random"), trainings=1)
    found = {row["method"]: row for row in compare(config, progress=QUIET).table}
    assert found["labelled"]["failed"] == 1
    assert "no room for a teacher" in next(config.out.glob("cells/**/failed.json")).read_text()
    assert found["random"]["report_nll"] > 0
