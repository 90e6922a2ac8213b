"""The page of chosen rows, and what is kept for it: lengths, groups, text, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_page_of_check import page

from made_run import HOSTILE, dump, make_check, make_selection
from nacd.commands.runs import ShowConfig, show_text
from nacd.errors import UserError
from nacd.report.chosen import chosen_context, chosen_lines, record_chosen
from nacd.report.page import ReportConfig, write_report


@pytest.mark.parametrize("name", HOSTILE[:6])
def test_hostile_rows_change_no_tag(tmp_path: Path, name: str) -> None:
    wild = page(make_selection(tmp_path / "a", name))
    assert wild.found == page(make_selection(tmp_path / "b", "tame")).found
    assert f"Question: {name} 1" in wild.text


def test_what_was_chosen_is_said(tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "run", "mine")
    values = chosen_context(folder)
    assert values["headline"] == (
        "Compare before you train: whether these 12 of 200 rows, chosen by RDS+, beat random rows "
        "has not been measured (`nacd check --budget 12 --methods rds+` on the same data does)."
    )
    assert " ".join(chosen_lines(folder)[-3:]) == values["headline"].replace("`", "")
    tiles = {name: (value, remark) for name, value, remark in values["tiles"]}
    assert tiles["Rows to train on"][0] == "12 of 200"
    assert tiles["Rows to train on"][1].startswith("306 tokens, 96")
    assert tiles["Choosing took"] == ("95 s", "1.5 TFLOP")
    assert values["measured"] == [("Lowest validation NLL", "mine")]
    assert values["lengths"].data[1]["y"] == [0.0, 1.0]
    assert values["groups"][:2] == [("mine 0", 12, 1.0, 10, 0.05), ("mine 1", 0, 0.0, 10, 0.05)]
    assert [row["tokens"] for row in values["rows"]] == [*range(20, 32)]
    assert values["rows"][1]["prompt"] == "system: mine\nuser: ask mine"
    (folder / "about_rows.json").unlink()  # an older version's
    assert chosen_context(folder)["lengths"] is None
    assert write_report(ReportConfig(folder)).is_file()
    drawn = make_selection(tmp_path / "drawn", method="random")
    assert chosen_context(drawn)["headline"].startswith("Train on these 12 random rows of 200:")


def test_before_its_end_there_is_no_page(tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "run")
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match="no rows are chosen yet; run its `nacd select` command"):
        write_report(ReportConfig(folder))
    assert "choosing" in show_text(ShowConfig(folder))


def test_lengths_and_groups_of_all_rows_are_kept(tmp_path: Path) -> None:
    lengths, groups = [1, 40, 40, 99, 100], ["a", "a", "b", "b", "b"]
    train: Any = SimpleNamespace(
        rows=[range(n) for n in lengths],
        examples=[SimpleNamespace(group=group) for group in groups],
    )
    record_chosen(tmp_path, SimpleNamespace(train=train), [1, 4])  # pyright: ignore[reportArgumentType]
    kept = json.loads((tmp_path / "about_rows.json").read_text())
    assert (kept["of"], kept["of_tokens"], kept["width"]) == (5, 280, 5)
    everything, own = kept["lengths"]
    assert (sum(everything), sum(own)) == (5, 2)
    assert (everything[0], everything[8], everything[19], everything[20]) == (1, 2, 1, 1)
    assert (own[8], own[20]) == (1, 1)
    assert kept["groups"] == [["b", 1, 3], ["a", 1, 2]]


@pytest.mark.parametrize("kind", ["select", "check"])
def test_show_prints_the_rows_text(tmp_path: Path, kind: str) -> None:
    folder = make_selection(tmp_path / "run", "a row of many words " * 9)
    if kind == "check":
        rows = (folder / "dataset" / "train.jsonl").read_text()
        folder = make_check(tmp_path / "check")
        (folder / "dataset").mkdir()
        (folder / "dataset" / "train.jsonl").write_text(rows)
    shown = show_text(ShowConfig(folder))
    assert shown.count("\n  text  ") == shown.count("\n  reply ") == 10
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert show_text(ShowConfig(folder, rows=3)).count("\n  text  ") == 3
    assert "  text  Question: a row of many words" in shown
    as_json = json.loads(show_text(ShowConfig(folder, rows=2, json=True)))
    assert [set(row) for row in as_json["rows"]] == 2 * [
        {"source", "prompt", "response", "tokens", "score"}
    ]
    if kind == "check":
        found = json.loads((folder / "results.json").read_text())
        dump(folder / "results.json", found | {"datasets": {}})
        assert "  text  " not in show_text(ShowConfig(folder)), "nothing is recommended"
