"""`nacd runs` and `nacd show`: what they list, how wide they are, and what they let through."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tyro

from made_run import HOSTILE, make_run
from nacd.commands.runs import RunsConfig, ShowConfig, find_runs, runs_text, show_text, visible
from nacd.errors import UserError
from nacd.store.run import RunFolder


def parse(kind: type, *args: str) -> object:
    return tyro.cli(kind, args=args, config=(tyro.conf.OmitArgPrefixes,))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "first")
    make_run(tmp_path / "group" / "a-run-with-a-name-that-is-longer-than-its-column", done=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("a: 1\n")
    return tmp_path


def test_runs_are_found_with_their_state(runs: Path) -> None:
    assert [path.name[:5] for path in find_runs(runs)] == ["first", "a-run"]
    shown = runs_text(RunsConfig(runs)).splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[2].split() == ["first", "2.410", "-0.100", "±0.020", "10.0%", "done"]
    assert shown[3].endswith("learning 4/4")
    assert runs_text(RunsConfig(runs / "first")).splitlines()[2].startswith("first ")


def test_runs_as_json(runs: Path) -> None:
    (first, second) = json.loads(runs_text(RunsConfig(runs, json=True)))
    assert (first["state"], first["report_nll"]) == ("done", pytest.approx(2.41))
    assert (second["state"], second["verdict"]) == ("learning 4/4", None)


def test_a_damaged_run_does_not_hide_the_others(runs: Path) -> None:
    (runs / "first" / "results.json").write_text("{")
    shown = runs_text(RunsConfig(runs))
    assert "first" in shown
    assert "damaged" in shown
    assert "a-run" in shown


def test_damaged_settings_are_named(runs: Path) -> None:
    file = runs / "first" / "run.yaml"
    file.write_text("budget: [5%")
    assert "damaged" in runs_text(RunsConfig(runs))
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: damaged, not YAML"):
        show_text(ShowConfig(runs / "first"))
    with pytest.raises(UserError, match=r"choose another --out"):
        RunFolder(runs / "first").open({})


def test_no_runs(tmp_path: Path) -> None:
    assert runs_text(RunsConfig(tmp_path)) == f"no run folders in {tmp_path}"
    with pytest.raises(UserError, match="no such folder"):
        runs_text(RunsConfig(tmp_path / "absent"))


def test_a_run_is_shown_with_its_most_changed_rows(runs: Path) -> None:
    shown = show_text(ShowConfig(runs / "first", rows=2))
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert "40 training, 8 target, 9 validation, 20 test rows" in shown
    assert "row text" in shown
    assert shown.index("row 3 of 3, 30.0% of tokens changed, distance 0.0167") < shown.index(
        "row 1 of 3"
    )
    assert "row 2 of 3" not in shown
    assert "  start 3 Why is the sky blue?\n  text  3 Why is the sky blue? anew\n" in shown
    assert "row 1 of" not in show_text(ShowConfig(runs / "first", rows=0))


def test_a_run_as_json(runs: Path) -> None:
    shown = json.loads(show_text(ShowConfig(runs / "first", rows=2, json=True)))
    assert [row["row"] for row in shown["rows"]] == [1, 2]
    assert shown["rows"][0]["text"] == "1 What is ice? anew"
    assert shown["rows"][1]["text"] == shown["rows"][1]["seed"] == "2 Name a bird."
    assert len(shown["table"]) == 6


def test_an_older_run_is_shown_without_seeds(tmp_path: Path) -> None:
    shown = show_text(ShowConfig(make_run(tmp_path / "run", beside_seeds=False)))
    assert "  text  Question: What is ice? Answer:" in shown
    assert "  start" not in shown
    assert "an older version made this folder" in shown


def test_no_row_can_steer_the_terminal(tmp_path: Path) -> None:
    shown = show_text(ShowConfig(make_run(tmp_path / "run", HOSTILE), rows=99))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert visible("a\x1b[31m\u202eb\n\u2028c\xa0d") == "a\\x1b[31m\\u202eb \\u2028c d"


def test_flags(tmp_path: Path) -> None:
    assert parse(RunsConfig) == RunsConfig(Path("runs"), False)
    assert parse(RunsConfig, str(tmp_path), "--json") == RunsConfig(tmp_path, True)
    assert parse(ShowConfig, "a", "--rows", "3") == ShowConfig(Path("a"), 3, False)
