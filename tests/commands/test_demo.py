"""The demo's own rows and flags, both of its runs, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nacd.cli import main
from nacd.config import demo as demo_config


@pytest.mark.slow
def test_the_demo(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = demo_config._data()  # the tiny tokenizer's words are letters
    monkeypatch.setattr(demo_config, "_data", lambda: replace(data, max_tokens=512))
    out = tmp_path / "demo"
    flags = ["demo", "--model", str(tiny_folder("llama")), "--outer-steps", "1"]
    assert main([*flags, "--minutes", "0.3", "--out", str(out), "--json"]) == 0
    found = capsys.readouterr()
    checked, distilled = json.loads(found.out)
    assert distilled["rows"] == 8
    methods = [row["method"] for row in distilled["table"]]
    # the last text has a row of its own where a check has chosen an earlier one
    shuffled = ["zero-shot", "random", "seeds", "text"]
    assert [method for method in methods if method != "text-last"] == shuffled
    # the distillation trains by the check's recipe
    settings = (out / "distill" / "run.yaml").read_text()
    assert f"learning_rate: {checked['recipe']['learning_rate']}" in settings
    said = " ".join(found.err.split())
    assert said.index("1 of 2: nacd check") < said.index("2 of 2: nacd distill")
    assert said.rindex(checked["verdict"]) > said.index("So much for 8 rows")
    for run in ("check", "distill"):
        assert (out / run / "report.html").is_file()
    assert len((out / "distill" / "dataset" / "train.jsonl").read_text().splitlines()) == 8
