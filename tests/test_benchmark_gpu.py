"""The benchmark of a GPU runs on the CPU, with shapes of nothing, and goes on where it stopped."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nacd.store.extras import installed

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_every_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    gpu: Any = import_module("gpu")
    command = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    gpu.main([*command, "--pieces", "engines", "offload"])
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("smollm2-*.json")}
    assert len(kept) == 2
    capsys.readouterr()
    gpu.main(command)
    shown = capsys.readouterr().out
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items()), "measured twice"
    assert max(map(len, shown.splitlines())) <= 80
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    there = {*gpu.CASES} - (set() if installed("bitsandbytes") else {"4bit"})
    assert {row["piece"] for row in rows} == there
    assert [row["label"] for row in rows if row["piece"] == "engines"] == [
        f"float32, {work}" for work in ("step", "one-sided", "first-order", "exact")
    ]
    for row in rows:
        assert "failed" not in row, row
        assert row["ratio"] > 0
        assert row["share"] > 0
        assert row["peak"] > 0
        assert ("outer_an_hour" in row) == (row["work"] != "step")
        least = {"4bit": -1.0, "sixteen": 0.5, "engines": 0.98}.get(row["piece"], 0.9999)
        assert row["cosine"] > least, row
    with pytest.raises(SystemExit, match="of another setting"):
        gpu.main([*command, "--repeats", "2", "--tokens", "8", "--device", "auto"])
    monkeypatch.setattr(gpu, "measured", lambda *_: pytest.fail("begun too late"))
    (tmp_path / "smollm2-packed.json").unlink()
    gpu.main([*command, "--pieces", "packed", "--minutes", "-1"])
    assert "smollm2, packed: left out" in capsys.readouterr().out
