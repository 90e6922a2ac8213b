"""The display: bars on a terminal, whole at 80 columns; lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from nacd.terminal.progress import Progress

LONG = "a verdict of many words " * 8 + "/a/path/" + "that/is/long/" * 8


def shown(terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    progress = Progress()
    progress.console = Console(file=out, width=80, force_terminal=terminal, highlight=False)
    return progress, out


def test_a_bar_is_whole_at_80_columns() -> None:
    progress, out = shown(terminal=True)
    with progress.stage("a stage with a name too long", 2000, done=1000) as tick:
        tick(1999, 12.345)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 80
    assert re.search(r"a stage with a nam .* 1999/2000 .*loss 12\.345", lines[-2] or lines[-3])


def test_text_breaks_between_words_on_a_terminal_and_paths_do_not() -> None:
    progress, out = shown(terminal=True)
    progress.say(LONG)
    lines = out.getvalue().splitlines()
    assert " ".join(line.strip() for line in lines).split() == LONG.split()
    assert all(len(line) <= 80 for line in lines if "/" not in line)


def test_a_pipe_gets_one_line_a_stage() -> None:
    progress, out = shown(terminal=False)
    progress.say(LONG)
    with progress.stage("outer steps", 3) as tick:
        for done in (1, 2, 3):
            tick(done, 2.5)
    assert out.getvalue().splitlines()[0] == LONG
    assert re.fullmatch(r"outer steps: 3 steps, \d+ s, loss 2\.500", out.getvalue().splitlines()[1])
    assert len(out.getvalue().splitlines()) == 2


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.say("nothing")
    with progress.stage("nothing", 1) as tick:
        tick(1, 1.0)
    assert capsys.readouterr() == ("", "")


def test_a_run_with_a_forecast_tells_how_far_it_is() -> None:
    progress, out = shown(terminal=False)
    progress.expect(600.0)
    with progress.stage("outer steps", 1) as tick:
        tick(1, 2.5)
    progress.end()
    first, last = out.getvalue().splitlines()
    assert first.endswith("s of about 10 min)")
    assert re.fullmatch(r"forecast 10 min, spent .* s", last)
