"""The benchmark of LESS runs, and writes what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def less(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script."""
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("less")


@pytest.mark.slow
def test_a_small_run(
    less: Any,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "figures"
    flags = "--tokens 12 --block 3 --repeats 2 --device cpu --projection-dim 64 --target-rows 2"
    command = ["--model", str(tiny_folder("llama")), "--out", str(out), *flags.split()]
    less.main([*command, "--memory-rows", "140"])
    shown = capsys.readouterr().out
    found = json.loads((out / "less.json").read_text())
    assert len(found["ratios"]) == 2
    assert min(found["ratios"]) <= found["ratio"] <= max(found["ratios"])
    assert all(second > 0 for second in found["speed"]["projection"])
    (row,) = found["memory"]
    assert row["rows"] == 140
    assert row["peak"] > 0
    assert f"share of plain steps: {found['ratio']:.2f} " in shown
    assert max(len(line) for line in shown.splitlines() if str(out) not in line) <= 80
    assert [file.name for file in out.iterdir()] == ["less.json"]
    more = found | {"memory": [row, row | {"peak": 2 * row["peak"]}]}
    assert "last peak as a multiple of the first: 2.000" in less.table(more)


def test_a_wrong_setting_is_named(less: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--repeats"):
        less.main(["--repeats", "0", "--out", str(tmp_path / "x")])
