"""What Python may give that flags cannot: numbers as budgets, rows in memory as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

import nacd
from nacd.config.budget import parse_budget
from nacd.config.settings import from_dict, to_dict
from nacd.terminal.progress import Progress

ROWS = [{"instruction": f"Name thing {i}", "output": f"the name\u2028{i}"} for i in range(40)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(112, "112"), ("112", "112"), (0.05, "5%"), ("0.07", "7%"), (0.005, "0.5%"), ("2t", "2t")],
)
def test_a_budget_is_kept_as_text(given: str | float, kept: str) -> None:
    config = nacd.DistillConfig(budget=given)
    assert config.budget == kept
    assert parse_budget(given) == parse_budget(kept)
    assert nacd.SelectConfig(budget=given).budget == nacd.CheckConfig(budget=given).budget == kept
    assert nacd.CompareConfig(budgets=[given, 3]).budgets == (kept, "3")
    assert from_dict(nacd.DistillConfig, yaml.safe_load(yaml.safe_dump({"budget": given})), "") == (
        config
    )


@pytest.mark.parametrize("budget", [1.0, "1.0", 1.5, 0, 0.0, -3, float("nan"), float("inf")])
def test_a_number_that_is_no_budget(budget: float) -> None:
    with pytest.raises(nacd.UserError, match="must be a whole number above 0; give rows"):
        nacd.DistillConfig(budget=budget, data=nacd.DataConfig(data="a.jsonl")).check()


@pytest.mark.parametrize("form", [list, iter, datasets.Dataset.from_list])
def test_rows_in_memory_are_a_run_that_can_be_repeated(
    form: Callable[[Any], Iterable[dict[str, Any]]],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = nacd.SelectConfig(
        out=Path("runs/random"),
        method="random",
        budget=3,
        model=nacd.ModelConfig(str(tiny_folder("gpt2")), lora_rank=2),
        data=nacd.DataConfig(data=form(ROWS), target_rows=4, template="alpaca"),
        recipe=nacd.Recipe(batch_size=2),
    )
    made = nacd.select(config, progress=Progress(quiet=True))
    assert len(made.rows) == 3
    assert [path.name for path in (tmp_path / "runs" / "rows").iterdir()] == [
        Path(config.data.data).name
    ]
    settings = yaml.safe_load((made.folder / "run.yaml").read_text())
    assert from_dict(nacd.SelectConfig, settings, "run.yaml") == config
    assert to_dict(nacd.DataConfig(data=ROWS))["data"] == config.data.data
    other = nacd.DataConfig(data=ROWS[1:], target_rows=4, template="alpaca")
    with pytest.raises(nacd.UserError, match=r"data\.data: 'runs/rows/\w{16}\.jsonl' there"):
        nacd.select(nacd.SelectConfig(**{**vars(config), "data": other}), progress=Progress(True))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], r"DataConfig\(data=...\): no rows; expected a file"),
        (5, r"a int; expected a file, a hub id, or rows"),
        (ROWS[0], r"a dict; expected a file"),
        (datasets.DatasetDict(), r"a DatasetDict; .* one split"),
        (["a"], "row 1 is a str; expected a file"),
        ([ROWS[0], {"output": "a", "day": date(2026, 1, 1)}], "row 2: 'day' holds a date, which"),
    ],
)
def test_what_is_no_data(
    data: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nacd.UserError, match=said):
        nacd.DataConfig(data=data)
    assert not list(tmp_path.iterdir())


def test_paths_and_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = nacd.DataConfig(data=tmp_path / "a.jsonl", heldout=ROWS[:9], target="owner/name")
    assert (named.data, named.target) == (str(tmp_path / "a.jsonl"), "owner/name")
    assert named.heldout
    assert len(Path(named.heldout).read_text(encoding="utf-8").splitlines()) == 9


def test_types_are_shipped() -> None:
    assert files("nacd").joinpath("py.typed").is_file()
