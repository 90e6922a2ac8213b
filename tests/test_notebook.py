"""The notebook of the first steps, its code run as it stands on a tiny model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacd.checking import plan

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "first-steps.ipynb"


def test_the_first_steps_run(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "MANY", 2)  # trainings, where there is time for more
    monkeypatch.setattr(plan, "MORE", 1)
    names: dict[str, Any] = {}
    given = {"MODEL": str(tiny_folder("llama")), "SIZE": 9, "MINUTES": 0.1}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert given.keys() <= names.keys()
                names |= given
    losses = [float(x) for x in re.findall(r": (\S+) nats a token", capsys.readouterr().out)]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert losses[1] < losses[0]
    assert len((names["chosen"].dataset / "train.jsonl").read_text().splitlines()) == 6
    assert len(list((tmp_path / "runs" / "rows").iterdir())) == 2
