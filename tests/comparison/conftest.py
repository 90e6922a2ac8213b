"""Rows that small grids compare on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        {
            "id": str(i),
            "question": f"Which colour has the thing number {i}?",
            "choices": {"text": ["red", "green", "the answer"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(60)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
