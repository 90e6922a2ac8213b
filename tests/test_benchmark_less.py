"""The benchmark of LESS runs, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "less.py"


@pytest.mark.slow
def test_a_small_run(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "figures"
    command = [sys.executable, SCRIPT, "--model", tiny_folder("llama"), "--out", out]
    flags = "--tokens 12 --block 3 --repeats 2 --device cpu --projection-dim 64 --target-rows 2"
    command += [*flags.split(), "--memory-rows", "5", "140"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "less.json").read_text())
    assert len(found["ratios"]) == 2
    assert min(found["ratios"]) <= found["ratio"] <= max(found["ratios"])
    assert all(second > 0 for second in found["speed"]["projection"])
    assert [row["rows"] for row in found["memory"]] == [5, 140]
    assert all(row["peak"] > 0 for row in found["memory"])
    assert f"share of plain steps: {found['ratio']:.2f} " in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(out) not in line) <= 80
    assert [file.name for file in out.iterdir()] == ["less.json"]


@pytest.mark.slow
def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--repeats", "0", "--out", tmp_path / "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--repeats" in done.stderr
    assert "Traceback" not in done.stderr
