"""The benchmark of the meta-gradient runs, and writes what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """The script's `main`."""
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("metagradient").main


@pytest.mark.slow
def test_a_small_run(
    benchmark: Callable[[list[str]], None],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "figures"
    flags = "--steps 1 --repeats 1 --rows 2 --tokens 12 --device cpu --lengths arc-easy"
    command = ["--model", str(tiny_folder("llama")), "--out", str(out), *flags.split()]
    command += ["--quiet-share", "2"]  # the tests run beside others
    whole = [*command, "--engines", "unrolled", "one-sided", "--long-steps", "2", "--no-memory"]
    benchmark(whole)
    shown = capsys.readouterr().out
    lines = (out / "table.jsonl").read_text().splitlines()
    _, *rows = [json.loads(line) for line in lines]
    assert [(row["engine"], row["N"]) for row in rows] == [
        ("unrolled", 1),
        ("one-sided", 1),
        ("one-sided", 2),
    ]
    assert all(row["time"] > 0 for row in rows)
    for row in rows:
        if row["engine"] == "one-sided":
            assert 0 < row["error"] < 0.2
            assert row["cosine"] > 0.98
    kept = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    packed = [line for line in kept if line.get("kind") == "packing"]
    assert [line["engine"] for line in packed] == ["step", "evaluation", "one-sided"]
    assert all(line["ratio"] > 0 for line in packed)
    assert "batches of 8 rows as long as arc-easy's: 53% of the positions" in shown
    assert max(len(line) for line in shown.splitlines() if str(out) not in line) <= 80
    benchmark(whole)
    assert (out / "table.jsonl").read_text().splitlines() == lines, "nothing is measured twice"
    benchmark([*command, "--engines", "one-sided", "--long-steps"])  # memory: a process each
    head, row = [json.loads(line) for line in (out / "table.jsonl").read_text().splitlines()]
    assert head["ordinary_peak_bytes"] > 0
    assert row["peak"] > 0
    assert row["times"] == rows[1]["times"]
    with pytest.raises(SystemExit, match="another rows"):
        benchmark([*whole, "--rows", "3"])


@pytest.mark.slow
def test_a_wrong_model_is_named(benchmark: Callable[[list[str]], None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not a model folder"):
        benchmark(["--model", str(tmp_path / "none"), "--out", str(tmp_path / "x")])
