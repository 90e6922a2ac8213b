"""What a grid is said to take: every stage, and nothing that its folder already holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_grid import grid

from nacd.comparison.cost import Forecast, forecast
from nacd.comparison.grid import cell_folder, folder_name
from nacd.config import ExpertConfig
from nacd.costs.forecasts import CHECKING
from nacd.model.prepare import prepare
from nacd.store.run import RunFolder

Folder = Callable[[str], Path]


def test_the_forecast_counts_every_stage(tiny_folder: Folder, rows: Path, tmp_path: Path) -> None:
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid")
    source = prepare(config.model, config.data)
    per_token = {config.model.model: 2.0, "other": 4.0}

    def of(**changes: object) -> Forecast:
        changed = replace(config, **changes)  # pyright: ignore[reportArgumentType]
        return forecast(changed, source, per_token, changed.recipe)

    plain = of()
    assert set(plain.before) == {"distilling, budget 4"}
    assert plain.training["other"] == pytest.approx(2 * plain.training[config.model.model])
    distilling = plain.before["distilling, budget 4"]
    assert of(distillations=3).before["distilling, budget 4"] == pytest.approx(3 * distilling)
    assert of(start_by="less").before["distilling, budget 4"] == pytest.approx(
        distilling + of(methods=("less",)).before["choosing by less, budget 4"]
    )
    tuned = of(tune_rates=(1e-3, 2e-3)).before
    name = Path(config.model.model).name
    assert tuned["tuning other, budget 4"] == pytest.approx(2 * tuned[f"tuning {name}, budget 4"])
    searched = of(tune=True).before
    assert searched[f"tuning {name}, budget 4"] == pytest.approx(
        8 * tuned[f"tuning {name}, budget 4"]
    )
    matching = replace(config.outer, objective="trajectory")
    few, more = (
        of(outer=matching, expert=ExpertConfig(experts=k)).before["distilling, budget 4"]
        for k in (1, 3)
    )
    steps = math.ceil(len(source.train) / ExpertConfig().expert_batch)
    mean = sum(map(len, source.train.rows)) / len(source.train)
    assert more - few > 2 * 2.0 * steps * ExpertConfig().expert_batch * mean
    measured = of(accuracy=config.methods).training["other"]
    assert measured > plain.training["other"]
    text = plain.describe()
    assert max(map(len, text.splitlines())) <= 80


def test_the_forecast_leaves_out_what_is_there(
    tiny_folder: Folder, rows: Path, tmp_path: Path
) -> None:
    config = grid(tiny_folder("llama"), rows, tmp_path / "grid")
    config = replace(config, methods=("less", "text"), tune_rates=(1e-3,), trainings=2)
    source = prepare(config.model, config.data)
    name = config.model.model
    folder = RunFolder(tmp_path / "grid")

    def of(**changes: Any) -> Forecast:
        return forecast(
            replace(config, **changes), source, {name: 1.0}, config.recipe, folder=folder.path
        )

    whole = of()
    assert (whole.trainings, whole.done, len(whole.before)) == (4, 0, 3)
    lines = 1 + config.outer.outer_steps // 2
    metrics = folder.path / "distilled/4-0/distill/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("{}\n" * lines)
    folder.once("choosing/4/less/chosen", dict)
    folder.once(f"tuning/{folder_name(name)}-4", dict)
    for seed in range(2):
        folder.once(f"{cell_folder(name, '4', 'text', seed)}/result", lambda: {"accuracy": None})
    left = of()
    distilling = "distilling, budget 4"
    share = 1 - lines / (1 + config.outer.outer_steps)
    check = CHECKING * 4 * sum(map(len, source.train.rows)) / len(source.train)
    learning = (whole.before[distilling] - check) * share
    assert left.before == {distilling: pytest.approx(learning + check)}
    folder.once("distilled/4-0/doctor", dict)
    assert of().before == {distilling: pytest.approx(learning)}
    assert (left.trainings, left.done) == (4, 2)
    assert left.training[name] == pytest.approx(whole.training[name] / 2)
    assert of(accuracy=("text",)).done == 0, "measured by what is asked for later, too"
