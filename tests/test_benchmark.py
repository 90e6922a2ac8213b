"""The benchmark of the meta-gradient runs, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "metagradient.py"


@pytest.mark.slow
def test_a_small_run(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "figures"
    flags = "--steps 1 --long-steps 2 --repeats 1 --rows 2 --tokens 12 --device cpu"
    engines = ["--engines", "unrolled", "one-sided"]
    command = [sys.executable, SCRIPT, "--model", tiny_folder("llama"), "--out", out]
    command += [*flags.split(), *engines]
    command += ["--quiet-share", "2"]  # the tests run beside others
    command += ["--lengths", "arc-easy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (out / "table.jsonl").read_text().splitlines()
    head, *rows = [json.loads(line) for line in lines]
    assert head["ordinary_peak_bytes"] > 0
    assert [(row["engine"], row["N"]) for row in rows] == [
        ("unrolled", 1),
        ("one-sided", 1),
        ("one-sided", 2),
    ]
    assert all(row["time"] > 0 and row["peak"] > 0 for row in rows)
    for row in rows:
        if row["engine"] == "one-sided":
            assert 0 < row["error"] < 0.2
            assert row["cosine"] > 0.98
    kept = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    packed = [line for line in kept if line.get("kind") == "packing"]
    assert [line["engine"] for line in packed] == ["step", "evaluation", "one-sided"]
    assert all(line["ratio"] > 0 for line in packed)
    assert "batches of 8 rows as long as arc-easy's: 53% of the positions" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(out) not in line) <= 80
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (out / "table.jsonl").read_text().splitlines() == lines, "nothing is measured twice"
    other = subprocess.run([*command, "--rows", "3"], capture_output=True, text=True)
    assert other.returncode == 1
    assert "another rows" in other.stderr


@pytest.mark.slow
def test_a_wrong_model_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", tmp_path / "none", "--out", tmp_path / "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "not a model folder" in done.stderr
    assert "Traceback" not in done.stderr
