"""The page as text: nothing of a row becomes markup, nothing is asked of a network, nothing lacks.

What is escaped is read back by Python's own HTML parser.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_run import HOSTILE, add_expert, dump, lines, make_run, metrics, row
from nacd.config import DataConfig, DistillConfig, ExpertConfig, OuterLoopConfig
from nacd.config.demo import DemoConfig, distill_config
from nacd.config.recipe import Recipe
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.report.charts import POINTS
from nacd.report.page import ReportConfig, render, write_report
from nacd.report.repeat import command
from nacd.store.folder import read_run

PLAIN = tuple(f"text {i}" for i in range(len(HOSTILE)))


class Reader(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", ()))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path, out: Path | None = None) -> str:
    text = write_report(ReportConfig(folder, out)).read_text(encoding="utf-8")
    start = text.index("<script>/**")
    return text[:start] + text[text.index("</script>", start) :]  # without plotly.js


@pytest.mark.parametrize("beside_seeds", [True, False])
def test_hostile_rows_change_no_tag(tmp_path: Path, beside_seeds: bool) -> None:
    tame = Reader(page(make_run(tmp_path / "a", PLAIN, beside_seeds=beside_seeds)))
    folder = make_run(tmp_path / "b", HOSTILE, beside_seeds=beside_seeds)
    wild = Reader(page(folder))
    assert wild.tags == tame.tags
    for text in HOSTILE:
        assert text in wild.text
    assert not [value for value in wild.values if "taken" in value]


def test_figures_survive_what_stands_in_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    hostile = "</script><!--\u2028<script>"
    results["table"][1]["label"] = hostile
    dump(folder / "results.json", results)
    text = page(folder)
    (found,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    assert not set("<>&\u2028\u2029") & set(found)
    figures = json.loads(found, parse_constant=pytest.fail)
    assert hostile in json.dumps(figures, ensure_ascii=False)
    ids = [figure["id"] for figure in figures]
    assert ids == ["results", "objective", "changed", "neighbour"], "no chart of a constant"
    assert all(f'id="chart-{i}"' in text for i in ids)
    objective = figures[1]["data"][0]
    assert objective["y"] == [2.9, 2.8, None, 2.6]  # the metrics hold a NaN


def test_half_of_a_surrogate_pair_does_not_stop_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    file = folder / "distill" / "rows.jsonl"
    file.write_text(json.dumps(row(1, "half \ud800 a pair")) + "\n")
    assert "half ? a pair" in page(folder)


def test_nothing_is_fetched_and_the_page_is_small(tmp_path: Path) -> None:
    text = page(make_run(tmp_path / "run", PLAIN))
    reader = Reader(text)
    assert not [v for v in reader.values if v.startswith(("http", "//", "file:"))]
    assert {tag for tag, names in reader.tags if "src" in names} == set()
    assert "default-src 'none'" in " ".join(reader.values)
    assert len(text) < 200_000


def test_long_curves_stay_within_the_mail_size(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines(folder / "distill" / "metrics.jsonl", metrics(30_000))
    add_expert(folder, 0, total=20_000, every=10, held_out=True)
    text = page(folder)
    assert len(text.encode()) < 500_000
    drawn = json.loads(text.split('type="application/json" id="figures">')[1].split("</script>")[0])
    for chart in drawn:
        for trace in chart["data"]:
            assert len(trace["x"]) == len(trace["y"]) <= POINTS + 1
    (objective,) = (chart["data"][0] for chart in drawn if chart["id"] == "objective")
    assert (objective["x"][0], objective["x"][-1]) == (1, 30_000)


def test_many_rows_stay_within_the_mail_size(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    rows = [row(number, "<&> " * 300) for number in range(1, 900)]
    lines(folder / "distill" / "rows.jsonl", rows)
    text = page(folder)
    assert 1_000_000 < len(text.encode()) < 2_000_000
    shown = [int(number) for number in re.findall(r'data-number="(\d+)"', text)]
    assert shown[:2] == [899, 897], "the most changed first"
    assert f"{899 - len(shown)} rows, those with the smallest changes, are left out" in text


def test_figures_stand_in_the_page(tmp_path: Path) -> None:
    text = Reader(page(make_run(tmp_path / "run"))).text
    squeezed = " ".join(text.split())
    assert "test NLL is 0.010 (\N{MINUS SIGN}0.004 to 0.024) lower" in squeezed
    assert "3 rows (30 tokens), 7.5 % of the 40 training rows" in squeezed
    assert "Only 3 trainings a row." in squeezed
    assert "Learning ended early. What is ice?" in squeezed
    assert "1 of 41 training rows, 1 of 9 target rows" in squeezed
    assert "None of the 3 distilled rows shares 13 words in a row" in squeezed
    assert "1 of the 40 training rows shares 13 words" in squeezed
    assert "learning 80 s 3.00 GB" in squeezed
    assert "1 of 10 tokens changed distance 0.050" in squeezed
    # -0.14, -0.14 and -0.17: their mean, and t(2) = 4.303 times 0.0173 / sqrt(3)
    minus = "\N{MINUS SIGN}"
    assert f"Against random rows{minus}0.150{minus}0.193 to {minus}0.107: better" in squeezed
    assert "Against the best real rows: the starting rows\N{MINUS SIGN}0.100" in squeezed
    assert "Rows to train on3 of 4030 tokens, 92 % of the rows saved" in squeezed
    assert "Distilling took80 swithout its table" in squeezed
    assert "row text 2.410 \N{MINUS SIGN}0.150" in squeezed
    assert squeezed.count("4-bit copy") == 1
    table, mind = (squeezed.index(part) for part in ("row zero-shot", "4-bit copy"))
    assert table < mind < squeezed.index("Distilled rows"), "what weakens it stands by the table"


def test_one_training_has_no_interval_and_says_so(tmp_path: Path) -> None:
    squeezed = " ".join(Reader(page(make_run(tmp_path / "run", trainings=1))).text.split())
    assert "One training a row. There is no interval" in squeezed
    assert "one training: no interval" in squeezed


def test_an_older_folder_says_what_is_missing(tmp_path: Path) -> None:
    text = Reader(page(make_run(tmp_path / "run", beside_seeds=False))).text
    assert "keeps neither the starting rows' texts nor the rows' distances" in text
    assert "Not checked: this run was made before overlap was." in text
    assert "Memory by stage is not in this folder" in text
    assert "Question: What is ice?" in text


def test_a_run_that_has_not_ended_has_a_page(tmp_path: Path) -> None:
    text = Reader(page(make_run(tmp_path / "run", done=False))).text
    assert "No verdict yet: this run has not ended (learning 4/4)." in text
    assert "No training of the table is there yet." in text
    assert "No row has been exported yet." in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", done=False)
    (folder / "distill" / "metrics.jsonl").unlink()
    (folder / "provenance.json").unlink()
    text = Reader(page(folder)).text
    assert "this run has not ended (begun)" in text
    assert "No outer step has been taken yet." in text


def test_experts_are_drawn_where_there_are_some(tmp_path: Path) -> None:
    outer = OuterLoopConfig(objective="trajectory", outer_steps=4, expert_start=4, expert_ahead=4)
    config = DistillConfig(data=DataConfig(data="d.jsonl"), outer=outer)
    folder = make_run(tmp_path / "run", config=config)
    assert "chart-trajectory" not in page(folder)
    add_expert(folder, 0, total=10, every=4, held_out=True)
    text = page(folder)
    assert 'id="chart-trajectory"' in text
    assert "Held-out loss at the snapshots" in text
    assert "matching expert trajectories" in text
    assert "expert steps long" in text


@pytest.mark.parametrize(
    "config",
    [
        DistillConfig(data=DataConfig(data="a b.jsonl")),
        DistillConfig(
            budget="5%",
            seed=3,
            compare=("seeds", "text"),
            tune_rates=(1e-3, 2e-3),
            model=ModelConfig(model="m's", gradient_checkpointing=True, lora_targets=("q", "v")),
            data=DataConfig(
                data="a.jsonl",
                columns=("prompt=q",),
                ignore_columns=("tools", "weight"),
                answers="from-1",
                template="-{prompt}\n{response}",
                target_rows=0,
            ),
            recipe=Recipe(eps=1e-6, epochs=1.5),
            expert=ExpertConfig(experts=2),
            outer=OuterLoopConfig(objective="trajectory", learn="prefix:4"),
        ),
        DistillConfig(compare=(), data=DataConfig(data="a.jsonl")),
    ],
)
def test_the_command_repeats_the_run(tmp_path: Path, config: DistillConfig) -> None:
    from nacd.cli import parse

    run = read_run(make_run(tmp_path / "run", config=config))
    program, verb, *flags = shlex.split(command(run))
    assert (program, verb) == ("nacd", "distill")
    out = Path(f"{tmp_path / 'run'}-again")
    assert parse("distill", flags) == replace(config, out=out)


def test_the_demo_is_repeated_as_the_demo(tmp_path: Path) -> None:
    from nacd.cli import parse

    demo = DemoConfig(out=tmp_path / "demo", budget="12", outer_steps=3, seed=2)
    made = make_run(tmp_path / "demo" / "distill", config=distill_config(demo, Recipe()))
    run = read_run(made)
    program, verb, *flags = shlex.split(command(run))
    assert (program, verb) == ("nacd", "demo")
    assert parse("demo", flags) == replace(demo, out=Path(f"{demo.out}-again"))


def test_a_setting_that_no_longer_exists_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    file = folder / "run.yaml"
    file.write_text(file.read_text() + "gone: 3\n")
    assert "gone" not in command(read_run(folder))


def test_the_page_goes_where_it_is_told_to(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(ReportConfig(folder, out)) == out
    assert not (folder / "report.html").exists()
    assert write_report(ReportConfig(folder)) == folder / "report.html"


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(ReportConfig(tmp_path))
    folder = make_run(tmp_path / "run")
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: not JSON"):
        write_report(ReportConfig(folder))
    (folder / "run.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="not the settings of a distillation"):
        write_report(ReportConfig(folder))


def test_templates_refuse_unknown_names() -> None:
    with pytest.raises(Exception, match="title"):
        render("base.html.jinja", {"figures": []})
