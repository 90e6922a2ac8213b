"""The demo's own rows and flags, through the whole pipeline, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nacd import demo as module
from nacd.cli import main
from nacd.demo_config import DemoConfig, demo_config


@pytest.mark.slow
def test_the_demo(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def longer(config: DemoConfig) -> object:  # the tiny tokenizer's words are letters
        made = demo_config(config)
        return replace(made, data=replace(made.data, max_tokens=512))

    monkeypatch.setattr(module, "demo_config", longer)
    out = tmp_path / "demo"
    flags = ["demo", "--model", str(tiny_folder("llama")), "--outer-steps", "1"]
    assert main([*flags, "--out", str(out), "--json"]) == 0
    found = capsys.readouterr()
    made = json.loads(found.out)
    assert made["rows"] == 16
    assert [row["method"] for row in made["table"]] == [
        "zero-shot",
        "random",
        "seeds",
        "seeds-shuffled",
        "random-prompts",
        "soft",
        "text",
        "text-shuffled",
        "full-equal-steps",
        "full",
    ]
    assert "not that distilling pays" in " ".join(found.err.split())
    assert len((out / "dataset" / "train.jsonl").read_text().splitlines()) == 16
    assert (out / "report.html").is_file()
