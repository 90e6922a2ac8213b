"""Two jobs in one comparison's folder: each training is made once, and the last has all of them."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_grid import grid

from nacd.commands.compare import compare
from nacd.comparison import rowset
from nacd.store import claims
from nacd.terminal.progress import Progress
from together import forked


def test_two_jobs_share_a_grid(
    tiny_folder: Callable[[str], Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, log = rowset.train_student, tmp_path / "trained"
    both, begun = multiprocessing.get_context("fork").Barrier(2), list[int]()

    def trained(*args: Any, **options: Any) -> Any:
        if not begun:
            both.wait(90)  # the other job trains too, and so on something else
        begun.append(args[3])
        with log.open("a") as file:
            file.write(f"{os.getpid()} {args[3]}\n")
        return train(*args, **options)

    monkeypatch.setattr(rowset, "train_student", trained)
    monkeypatch.setattr(claims, "PAUSE", 0.05)
    out = tmp_path / "grid"
    config = grid(tiny_folder("llama"), rows, out, methods=("zero-shot", "random"), trainings=3)
    found = forked([lambda: compare(config, progress=Progress(quiet=True)).table] * 2)
    made = [line.split() for line in log.read_text().splitlines()]
    assert sorted(seed for _, seed in made) == ["0", "1", "2"]
    assert len({job for job, _ in made}) == 2
    assert not any(isinstance(table, Exception) for table in found)
    results = json.loads((out / "results.json").read_text())
    assert results["trainings"] == {"done": 4, "of": 4}
    assert results["table"] in found
    assert [*(out / claims.FOLDER).iterdir()] == []
