"""The benchmark of growth: its points on a tiny model, its lines, and going on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("growth")


def test_every_line_has_points(growth: Any, tiny_folder: Callable[[str], Path]) -> None:
    config = growth.Config(model=str(tiny_folder("llama")), tokens=12)
    for line, size in (("dedup", 60), ("vocabulary", 64), ("steps", 1), ("pseudo-rows", 8)):
        found = growth.point(line, size, config)
        assert found["seconds"] > 0
        assert found["peak"] > 1e6


def test_points_are_kept_and_their_line_is_told(
    growth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"model": "smollm2", "tokens": 48}
    for size in (1000, 2000, 4000):
        kept = {"line": "random", "size": size, "seconds": 1 + 0.002 * size, "device": "a machine"}
        kept |= {"peak": 500_000_000 + 100 * size, "date": "2026-11-28", "asked": asked}
        (tmp_path / f"random-{size}.json").write_text(json.dumps(kept))
    monkeypatch.setattr(growth.subprocess, "run", None)  # no process is started
    command = ["--lines", "random", "--rows", "4000", "1000", "2000", "--out", str(tmp_path)]
    growth.main([*command, "--plot", str(tmp_path / "plot.html")])
    shown = capsys.readouterr().out
    assert "2 ms and 0.1 kB more for each row" in shown
    assert "doubling rows to 4,000 multiplies time by 1.80, memory by 1.00" in shown  # 9 s over 5 s
    assert max(map(len, shown.splitlines()[:7])) <= 80
    assert "a machine" in shown
    assert "random: seconds" in (tmp_path / "plot.html").read_text()
    with pytest.raises(SystemExit, match=r"random-1000\.json is of other settings"):
        growth.main([*command, "--tokens", "12"])
