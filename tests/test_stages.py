from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from nacd.config import DataConfig, DistillConfig
from nacd.data import Example, Message, Splits
from nacd.errors import UserError
from nacd.stages import open_run

TURNS = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
ROWS = [
    Example(tuple(Message(*turn) for turn in TURNS), "mine.jsonl:1"),
    Example(tuple(Message(*turn) for turn in TURNS[2:]), "mine.jsonl:2"),
]


def test_a_run_goes_on_with_its_own_rows_and_labels_alone(tmp_path: Path) -> None:
    config = DistillConfig(out=tmp_path / "run", data=DataConfig(data="mine.jsonl"))
    folder = open_run(config, Splits(ROWS, [], [], ROWS[:1]))
    (folder.path / "seeds.json").write_text("{}")  # something is made
    open_run(config, Splits(ROWS, [], [], ROWS[:1]))
    quiet = [replace(message, train=False) for message in ROWS[0].messages]
    unlabelled = replace(ROWS[0], messages=(*quiet[:2], *ROWS[0].messages[2:]))
    for rows in (ROWS[::-1], ROWS[:1], [unlabelled, ROWS[1]]):
        with pytest.raises(UserError, match=r"data has changed .*\(train rows\)"):
            open_run(config, Splits(rows, [], [], ROWS[:1]))
    # what is no label anyway changes nothing
    users = replace(ROWS[0], messages=(quiet[0], *ROWS[0].messages[1:3], quiet[3]))
    open_run(config, Splits([users, ROWS[1]], [], [], ROWS[:1]))
    said = (folder.path / "provenance.json").read_text()
    plain = hashlib.sha256("".join(row.digest for row in ROWS).encode()).hexdigest()
    assert f"2 rows, {plain[:16]}" in said, "as earlier versions have it"
