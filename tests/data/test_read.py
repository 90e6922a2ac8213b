"""Files of every kind, in every known shape, and the message for every one that cannot be read."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nacd.data import Example, hub_license, read_examples
from nacd.errors import UserError

ROWS = [{"prompt": "Sky?", "completion": "Blue"}, {"prompt": "Grass?", "completion": "Green"}]


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    else:
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(content), path)
    return path


def texts(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(example.prompt, example.response) for example in examples]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path: Path, suffix: str):
    examples = read_examples(write(tmp_path / f"mine.{suffix}", ROWS))
    assert texts(examples) == [("Sky?", "Blue"), ("Grass?", "Green")]


def test_sources_name_file_and_line(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{json.dumps(ROWS[1])}\n")
    assert [example.source for example in read_examples(path)] == [f"{path}:1", f"{path}:3"]
    long = [{"prompt": "two\nlines", "completion": "a"}, *ROWS]
    path = write(tmp_path / "mine.csv", long)
    assert [e.source for e in read_examples(path)] == [f"{path}:2", f"{path}:4", f"{path}:5"]


def test_json_may_be_an_object_with_one_list_or_json_lines(tmp_path: Path):
    wrapped = write(tmp_path / "a.json", {"data": ROWS})
    described = write(tmp_path / "b.json", {"version": 1, "tags": ["x"], "data": ROWS})
    lines = tmp_path / "c.json"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS))
    for path in (wrapped, described, lines):
        assert texts(read_examples(path)) == texts(read_examples(write(tmp_path / "d.json", ROWS)))


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path):
    for path in (write(tmp_path / "a.csv", ROWS), write(tmp_path / "a.jsonl", ROWS)):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(read_examples(path)) == 2


def test_structures_in_csv_are_read_as_json(tmp_path: Path):
    row = {"question": "1 + 1?", "choices": '["1", "2"]', "answer": "B"}
    (example,) = read_examples(write(tmp_path / "a.csv", [row]))
    assert example.response == "2"


def test_a_folder_stands_for_its_split_file(tmp_path: Path):
    write(tmp_path / "train.jsonl", ROWS)
    assert len(read_examples(tmp_path)) == 2
    with pytest.raises(UserError, match=r"folder without a test\.jsonl"):
        read_examples(tmp_path, split="test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b"\n\n", r"a\.jsonl is empty"),
        ("a.json", b"", r"a\.json is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"prompt,completion\n", r"a\.csv is empty"),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n{"prompt": \n',
            r"a\.jsonl:2 ends in the middle of a row: the file was cut short",
        ),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n[1]\n',
            r"a\.jsonl:2 is not a JSON object but a list",
        ),
        ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n"\xff"\n', r"a\.jsonl:2 is not UTF-8"),
        ("a.json", b'[{"prompt": "a",\n "completion" "b"}]', r"a\.json:2 is not valid JSON"),
        ("a.json", b'"text"', r"a\.json holds neither a list of rows"),
        ("a.json", b"[1]", r"a\.json row 1 is not a JSON object"),
        (
            "a.csv",
            b"prompt,completion\na,b\na,b,c\n",
            r"a\.csv:3 has 3 cells, and the header 2 columns.*Quote the cells that hold commas",
        ),
        (
            "a.csv",
            b"prompt,completion\na,b\nc\n",
            r"a\.csv:3 has 1 cell, and the header 2 columns",
        ),
        ("a.csv", b'prompt,completion\na,"b\n', r"a\.csv:2 is not valid CSV"),
        ("a.parquet", b"PAR?", r"a\.parquet is not a readable Parquet file"),
        ("a.xlsx", b"PK", r"a\.xlsx is not a kind of file .* \.csv, \.tsv or \.parquet"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_examples(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.jsonl", "./absent", "/nowhere/at/all", "a/b.parquet"])
def test_an_absent_file_is_not_looked_for_on_the_hub(name: str):
    with pytest.raises(UserError, match=f"no such file: {name}"):
        read_examples(name)


def test_a_hub_id_is_loaded_with_config_and_split(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        assert (name, config, split) == ("owner/name", "easy", "test")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = read_examples("owner/name:easy", split="test")
    assert texts(examples) == [("Sky?", "Blue"), ("Grass?", "Green")]
    named = read_examples("owner/name:easy:test", split="validation")
    assert texts(named) == texts(examples), "the name's own split counts"
    assert examples[1].source == "owner/name:easy[test] row 2"


def test_a_hub_id_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"'owner/nmae'.*no route\. .*offline.*spelling"):
        read_examples("owner/nmae")


@pytest.mark.parametrize(
    ("license", "found"), [("apache-2.0", "apache-2.0"), (["mit", "cc-by-4.0"], ""), (None, "")]
)
def test_the_licence_of_a_hub_data_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, license: Any, found: str
):
    from huggingface_hub import DatasetCardData, HfApi

    asked: list[str] = []

    class Info:
        card_data = DatasetCardData(license=license)

    def dataset_info(_: HfApi, name: str, **__: Any) -> Info:
        asked.append(name)
        return Info()

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    assert hub_license("owner/name:easy:test") == found
    assert hub_license(str(tmp_path)) == ""
    assert hub_license("rows.jsonl") == ""
    assert asked == ["owner/name"]

    def refused(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", refused)
    assert hub_license("owner/name") == ""
