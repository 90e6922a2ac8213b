"""JSON that every reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nacd.errors import UserError
from nacd.store.files import read_json, read_json_lines, write_json, write_json_lines

VALUE: dict[str, Any] = {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf, "e": "NaN"}}
READ = {"a": None, "b": [None, 1.5], "c": {"d": None, "e": "NaN"}}


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", VALUE)
    assert strict((tmp_path / "a.json").read_text()) == READ
    write_json_lines(tmp_path / "a.jsonl", [VALUE, {"f": 1}])
    assert [strict(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        READ,
        {"f": 1},
    ]


def test_older_files_and_broken_ones_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": NaN, "b": [Infinity, 1.5]}')
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, 1.5]}
    (tmp_path / "a.jsonl").write_text('{"a": NaN}\n{"b": "\u2028"}\n{"c"')
    assert read_json_lines(tmp_path / "a.jsonl") == [{"a": None}, {"b": "\u2028"}]
    assert read_json_lines(tmp_path / "absent.jsonl") == []
    (tmp_path / "b.json").write_text('{"a"')
    with pytest.raises(UserError, match=r"b\.json: not JSON .*; delete it, and run the same"):
        read_json(tmp_path / "b.json")
