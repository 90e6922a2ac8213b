"""The page of a check: what is drawn, what is said, and that nothing of a name becomes markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_run import HOSTILE, dump, make_check
from nacd.errors import UserError
from nacd.report.check import check_context, curve, unbroken
from nacd.report.page import ReportConfig, write_report


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(f"{tag} {' '.join(name for name, _ in attrs)}")

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path) -> Tags:
    text = write_report(ReportConfig(folder)).read_text(encoding="utf-8")
    start = text.index("<script>/**")
    return Tags(text[:start] + text[text.index("</script>", start) :])  # without plotly.js


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_no_tag(tmp_path: Path, name: str) -> None:
    wild = page(make_check(tmp_path / "a", name))
    assert wild.found == page(make_check(tmp_path / "b", "tame")).found
    assert f"Choose by {name}: give" in wild.text


def test_the_curve_holds_random_sets_and_choices_and_no_far_figure(tmp_path: Path) -> None:
    found = json.loads((make_check(tmp_path, "RDS+") / "results.json").read_text())
    chart = curve(found)
    assert chart is not None
    random, choice = chart.data
    assert (random["x"], random["y"]) == ([26, 105, 2108], [2.8, 2.4, 2.0])
    assert random["marker"]["symbol"] == ["circle", "circle", "circle-open"]
    assert choice["y"] == [2.3]
    assert 105 < choice["x"][0] < 130
    low, high = chart.layout["yaxis"]["range"]
    assert low < 1.95 < 2.85 < high < 3.2, "no training, at 4.5, would squeeze the axis"
    assert "no training: 4.50" in json.dumps(chart.layout)


def test_a_check_that_trained_nothing_has_a_page(tmp_path: Path) -> None:
    folder = make_check(tmp_path)
    found = json.loads((folder / "results.json").read_text())
    found |= {"table": found["table"][:1], "tuning": None, "datasets": {}, "margin": None}
    dump(folder / "results.json", found)
    text = page(folder).text
    assert "Nothing has been trained yet." in text
    assert text.count("not measured") == 2


def test_before_its_end_there_is_no_page(tmp_path: Path) -> None:
    folder = make_check(tmp_path)
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match="this check has no result yet; run its command again"):
        write_report(ReportConfig(folder))


def test_figures_and_tiles(tmp_path: Path) -> None:
    values = check_context(make_check(tmp_path, "RDS+"))
    tiles = {name: (value, remark) for name, value, remark in values["tiles"]}
    assert tiles["All 2,108 rows"][0] == "\N{MINUS SIGN}0.400"
    assert "one training: no interval" in tiles["All 2,108 rows"][1]
    assert tiles["Best choice: RDS+"][0] == "\N{MINUS SIGN}0.100"
    assert tiles["Rows to train on"][0] == "105"
    assert "4,200 tokens, 95" in tiles["Rows to train on"][1]
    assert len(values["tuning"]["table"]) + values["tuning"]["more"] == 12


def test_soft_labels_are_shown_as_no_choice(tmp_path: Path) -> None:
    folder = make_check(tmp_path, "RDS+")
    found = json.loads((folder / "results.json").read_text())
    taught = found["table"][-1] | {"set": "labelled", "name": "105 soft-labelled", "nll": 2.1}
    dump(folder / "results.json", found | {"table": [*found["table"], taught]})
    values = check_context(folder)
    names = [name for name, _, _ in values["tiles"]]
    assert "Best choice: RDS+" in names
    assert "Soft labels" in names
    assert [trace["name"] for trace in values["curve"].data] == [
        "random rows",
        "RDS+",
        "soft labels",
    ]
    assert "soft labels" in json.dumps(values["choices"].data)


def test_a_flag_and_its_value_stay_together() -> None:
    assert str(unbroken("a < b: give --minutes 30 (so)")) == (
        'a &lt; b: give <span class="flag">--minutes 30</span> (so)'
    )
