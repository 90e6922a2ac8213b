"""Files as people have them: dialects, encodings, parts, pointers, and what is no data at all."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nacd.data import Example, hub_license, read_examples
from nacd.errors import UserError

ROWS = [
    {"instruction": "Sky, at noon?", "output": "Blue; bright"},
    {"instruction": "Two\nlines?", "output": 'A "quoted"\tone | two'},
    {"instruction": "Grüße?", "output": "日本"},
]
PAIRS = [(row["instruction"], row["output"]) for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def texts(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(example.prompt, example.response) for example in examples]


def read(path: Path, content: str | bytes, **options: Any) -> list[tuple[str, str]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return texts(read_examples(path, **options))


def table(separator: str, rows: Sequence[Sequence[str]] = (), end: str = "\r\n") -> str:
    """A table as its writers make it: cells are quoted where they must be."""

    def cell(text: str) -> str:
        needed = any(c in text for c in (separator, '"', "\n", "\r"))
        return '"' + text.replace('"', '""') + '"' if needed else text

    rows = rows or [("instruction", "output"), *PAIRS]
    return "".join(separator.join(map(cell, row)) + end for row in rows)


# Tables


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_a_table_is_read_by_the_separator_that_it_has(
    tmp_path: Path, separator: str, name: str, end: str
):
    assert read(tmp_path / name, table(separator, end=end)) == PAIRS


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_excel_may_name_the_separator(tmp_path: Path, separator: str):
    content = f"sep={separator}\r\n" + table(separator)
    assert read(tmp_path / "mine.csv", content) == PAIRS
    assert read(tmp_path / "mine.csv", b"\xef\xbb\xbf" + content.encode()) == PAIRS
    path = tmp_path / "mine.csv"
    assert [e.source for e in read_examples(path)] == [f"{path}:{n}" for n in (3, 4, 6)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_marked_encodings_are_read(tmp_path: Path, encoding: str):
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
    for name, content in (("a.csv", table("\t")), ("a.jsonl", LINES), ("a.json", json.dumps(ROWS))):
        assert read(tmp_path / name, (mark + content).encode(encoding)) == PAIRS


def test_every_row_holds_the_separator_that_is_none(tmp_path: Path):
    rows = [("instruction", "output"), ("Name, please", "A river, well"), ("And, again", "No, no")]
    assert read(tmp_path / "a.csv", table(";", rows)) == rows[1:]
    rows = [("instruction, long", "output"), ("Name, please", "A river"), ("And, again", "No")]
    columns = {"instruction": "instruction, long"}
    assert read(tmp_path / "a.csv", table(";", rows), columns=columns) == rows[1:]
    with pytest.raises(UserError, match=r"table of commas .* and of semicolons .* Quote the cells"):
        read(tmp_path / "a.csv", "a,b;c\n1,2;3\n")


def test_blank_lines_empty_names_and_trailing_separators(tmp_path: Path):
    content = ",instruction,output,\r\n\r\n0,Sky?,Blue,\r\n,,,\r\n1,Sea?,Green,,\r\n \r\n"
    assert read(tmp_path / "a.csv", content) == [("Sky?", "Blue"), ("Sea?", "Green")]
    with pytest.raises(UserError, match=r"a\.csv:2 has a cell in a column .*'lost'"):
        read(tmp_path / "a.csv", "instruction,output,\nSky?,Blue,lost\n")


def test_names_of_columns_may_be_padded_and_capital(tmp_path: Path):
    assert read(tmp_path / "a.csv", "Instruction, Output ,Input\nSky?,Blue,At noon.\n") == [
        ("Sky?\n\nAt noon.", "Blue")
    ]


def test_one_column_is_a_table_too(tmp_path: Path):
    turns = json.dumps([{"role": "user", "content": "a, b"}, {"role": "assistant", "content": "c"}])
    quoted = turns.replace('"', '""')
    assert read(tmp_path / "a.csv", f'messages\n"{quoted}"\n') == [("a, b", "c")]
    with pytest.raises(UserError, match=r"a\.csv:2 is not valid CSV|a\.csv:2 has \d+ cell"):
        read(tmp_path / "a.csv", f"messages\n{turns}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("instruction,output,output\na,b,c\n", r"a\.csv:1: the header names `output` twice"),
        ("instruction;output\na;b;c\n", r":2 has 3 cells.*Quote the cells that hold semicolons\."),
        ("instruction;output\na;b\nc\n", r":3 has 1 cell.*Quote cells that hold line breaks"),
        ('instruction,output\na, "b, c"\n', r":2 has 3 cells.*A quote opens a cell only right"),
        ('instruction,output\na,b\n\nc,"d\ne\n', r"a\.csv:4 is not valid CSV.*begins there"),
        ('instruction,output\na,"b"c\n', r"a\.csv:2 is not valid CSV.*written twice"),
        ("instruction,output\na,b\ninstruction,output\nc,d\n", r"a\.csv:3 repeats the header"),
        ('{"instruction": "a", "output": "b"}\n', r"a\.csv:1 is JSON and no table"),
        ("a,b\0\n1,2\n", r"a\.csv:1 holds null bytes"),
    ],
)
def test_bad_tables_are_named_with_the_right_mend(tmp_path: Path, content: str, message: str):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv", content)


def test_structures_that_are_not_json_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.csv:2: `choices` is text that looks like JSON and is"):
        read(tmp_path / "a.csv", "question,choices,answer\nSky?,\"['a', 'b']\",a\n")


# JSON


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n\n  " + json.dumps(ROWS, indent=2),
        json.dumps({"rows": ROWS}),
        json.dumps({"version": 1, "rows": ROWS}, indent=1),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.replace("\n", ""),
        LINES.replace("}\n", "}\n\ufeff"),
        "\ufeff" + LINES.replace("}\n", "}\ufeff"),
        LINES.rstrip("\n"),
    ],
)
def test_rows_are_read_however_they_stand_in_the_file(tmp_path: Path, name: str, content: str):
    assert read(tmp_path / name, content) == PAIRS


def test_one_row_alone_is_a_row(tmp_path: Path):
    turns = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue"}]
    for row in ({"messages": turns}, {"messages": turns, "tags": [{"a": 1}]}):
        for indent in (None, 1):
            assert read(tmp_path / "a.json", json.dumps(row, indent=indent)) == [("Sky?", "Blue")]
    chosen = json.dumps({"chosen": turns, "rejected": turns})
    assert read(tmp_path / "a.jsonl", chosen, columns={"messages": "chosen"}) == [("Sky?", "Blue")]
    odd = json.dumps({"turns": turns})
    assert read(tmp_path / "a.jsonl", odd, columns={"messages": "turns"}) == [("Sky?", "Blue")]
    (example,) = read_examples(tmp_path / "a.jsonl", columns={"messages": "turns"})
    assert example.source == f"{tmp_path}/a.jsonl:1"


def test_lines_end_at_line_feeds_alone(tmp_path: Path):
    rows = [{"instruction": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", "output": "x\u2028"}] * 2
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    pairs = [(row["instruction"], row["output"]) for row in rows]
    assert read(tmp_path / "a.jsonl", raw) == pairs
    assert read(tmp_path / "a.csv", table(",", [("instruction", "output"), *pairs])) == pairs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES[:-20], r"a\.jsonl:3 ends in the middle of a row: the file was cut short"),
        (json.dumps(ROWS)[:-20], r"a\.jsonl:1 ends in the middle of a row: the file was cut"),
        (LINES + '{"instruction": "a" "b"}\n' + LINES, r":4 is not valid JSON.*Mend the row there"),
        (LINES + "{'instruction': 'a'}\n", r"a\.jsonl:4 .*Texts stand in double quotes"),
        (LINES.replace("}\n", "},\n"), r"a\.jsonl:1 is not valid JSON .*Take out the comma, or"),
        (
            '{"instruction": "a\tb", "output": "c"}',
            r":1 .*Write line breaks and tabs .* \\n and \\t",
        ),
        ("instruction,output\na,b\n", r"a\.jsonl:1 is not valid.*If the file is a table, name it"),
        (LINES + "null\n", r"a\.jsonl:4 is not a JSON object but null"),
        (LINES + '"text"\n', r"a\.jsonl:4 is not a JSON object but text"),
        ("[" * 100_000, r"a\.jsonl:1 is nested too deeply"),
        (LINES + '{"a":' * 100_000, r"a\.jsonl:4 is nested too deeply"),
        ('{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}", r":1 holds a number"),
        (
            '{"instruction": "a", "output": "b", "output": "c"}',
            r"a\.jsonl:1: the key `output` stands twice in one object, with two values",
        ),
        ('{"a": [{"x": 1}], "b": [{"x": 1}]}', r"holds several lists of rows \(a, b\)"),
        (
            '{"instruction": {"0": "a"}, "output": {"0": "b"}}',
            r"a\.jsonl is written column by column.*orient='records'",
        ),
        ('{"instruction": ["a"], "output": ["b"]}', r"a\.jsonl is written column by column"),
        ('{"system": "S", "rows": [{"a": 1}]}', r"has `system` beside its list of rows, `rows`"),
        ('{"instruction": "a", "output": "\\ud83d"}', r":1: `output` holds \\ud83d at character 1"),
        ('{"instruction": "\\udc00", "output": "b"}', r":1: `instruction` holds \\udc00"),
        (b'{"instruction": "\xe9", "output": "b"}', r":1 is not UTF-8 \(byte 0xe9.*'.*\xe9.*iconv"),
        ('{"instruction": "日'.encode()[:-1], r"a\.jsonl:1 ends in the middle of a character"),
        (LINES.encode("utf-16-le"), r"a\.jsonl:1 holds null bytes: .* UTF-16 without a mark"),
        (b"\xff\xfe" + LINES.encode("utf-16-le")[:-1], r"a\.jsonl is marked as UTF-16 and is not"),
        (LINES.encode() + b"\0" * 40, r"a\.jsonl:4 holds null bytes"),
    ],
)
def test_bad_json_is_named_with_the_right_mend(tmp_path: Path, content: str | bytes, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "a.jsonl", content)
    assert "elete" not in str(caught.value), "a row that may be good is not to be thrown away"


def test_half_a_character_is_named_wherever_a_text_stands(tmp_path: Path):
    half, turn = "\ud83d", {"role": "assistant", "content": "Blue"}
    rows = [
        {"messages": [{"role": "user", "content": half}, turn]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": half}]}, turn]},
        {"instruction": "a", "input": half, "output": "b"},
        {"instruction": "a", "system": half, "output": "b"},
        {"instruction": "a", "history": [[half, "b"]], "output": "b"},
        {"question": "a", "choices": ["b", half], "answer": "A"},
    ]
    for row in rows:
        with pytest.raises(UserError, match=r"a\.jsonl:1.* holds \\ud83d at character 1"):
            read(tmp_path / "a.jsonl", json.dumps(row) + "\n" + json.dumps(row))
    whole = {"instruction": "\ud83d\ude00", "output": "b", "id": "\ud83d"}
    assert read(tmp_path / "a.jsonl", json.dumps(whole)) == [("😀", "b")]


def test_numbers_that_are_none_say_nothing(tmp_path: Path):
    row = '{"instruction": "a", "input": NaN, "output": "b", "score": Infinity}'
    assert read(tmp_path / "a.jsonl", row) == [("a", "b")]
    with pytest.raises(UserError, match="`output` is NaN"):
        read(tmp_path / "a.jsonl", row.replace('"b"', "NaN"))


def test_one_key_twice_with_one_value_is_no_harm(tmp_path: Path):
    row = '{"instruction": "a", "output": "b", "output": "b"}'
    assert read(tmp_path / "a.jsonl", row) == [("a", "b")]


# What is no data


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 734\n",
            "is a Git LFS pointer, not the data: run `git lfs pull`",
        ),
        (b"/annex/objects/MD5E-s1--0a.csv\n", "is a git-annex pointer"),
        (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "is a web page"),
        (b"\n <HTML lang='en'>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (bz2.compress(LINES.encode()), "is compressed by bzip2"),
        (b"\x28\xb5\x2f\xfd rest", "is compressed by zstd"),
    ],
)
def test_what_is_no_data_is_named_under_any_suffix(
    tmp_path: Path, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(path)
    assert name in str(caught.value)


def test_an_archive_is_named(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as archive:
        archive.writestr("a.txt", LINES)
    with pytest.raises(UserError, match=r"a\.csv is a ZIP archive.*save the workbook as CSV"):
        read_examples(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    with pytest.raises(UserError, match="is empty: expected at least one row"):
        read_examples(tmp_path / name)


def test_paths_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl is neither a file nor a folder"):
        read_examples(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_examples("a" * 5000 + ".jsonl")
    with pytest.raises(UserError, match=r"the name is not UTF-8. Rename the file"):
        read_examples("a\udce9.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text(LINES)

    def refused(self: Path, *_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"c\.jsonl cannot be read \(Permission denied\)"):
        read_examples(tmp_path / "c.jsonl")


# Parts and compression


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.tsv.gz", "a.jsonl"])
def test_gzip_is_unpacked(tmp_path: Path, name: str):
    content = table("\t") if "sv" in name else LINES
    assert read(tmp_path / name, gzip.compress(content.encode())) == PAIRS
    with pytest.raises(UserError, match=rf"{name} is a damaged gzip file.*Fetch it anew"):
        read(tmp_path / name, gzip.compress(content.encode())[:-12])


def test_parts_of_a_split_are_read_as_one(tmp_path: Path):
    for folder in (tmp_path / "a", tmp_path / "b" / "data"):
        folder.mkdir(parents=True)
        for number, row in enumerate(ROWS):
            (folder / f"train-0000{number}-of-00003.jsonl").write_text(json.dumps(row))
        (folder / "test-00000-of-00001.jsonl").write_text(json.dumps(ROWS[0]))
    assert texts(read_examples(tmp_path / "a")) == PAIRS
    assert texts(read_examples(tmp_path / "b")) == PAIRS
    assert texts(read_examples(tmp_path / "a", split="test")) == PAIRS[:1]
    (tmp_path / "a" / "train-00001-of-00003.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds 2 of 3 parts of a split.*Fetch the others"):
        read_examples(tmp_path / "a")


def test_files_may_be_named_by_a_pattern(tmp_path: Path):
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(row))
    (tmp_path / "part-9.jsonl").write_text("")
    pattern = str(tmp_path / "part-*.jsonl")
    assert texts(read_examples(pattern)) == PAIRS
    assert read_examples(pattern)[1].source == str(tmp_path / "part-1.jsonl:1")
    with pytest.raises(UserError, match=r"no file matches .*/nothing-\*"):
        read_examples(tmp_path / "nothing-*")
    with pytest.raises(UserError, match=r"or a pattern in quotes: '.*/\*\.jsonl'"):
        read_examples(tmp_path)
    (tmp_path / "[draft] #1.jsonl").write_text(LINES)
    assert texts(read_examples(tmp_path / "[draft] #1.jsonl")) == PAIRS


# Parquet


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_of_many_types(tmp_path: Path):
    import pyarrow as pa

    count = len(ROWS)
    columns: dict[str, Any] = {
        "instruction": pa.array([p for p, _ in PAIRS]).dictionary_encode(),
        "output": pa.array([r for _, r in PAIRS], pa.large_string()),
        "system": pa.nulls(count),
        "at": pa.array([0] * count, pa.timestamp("us")),
        "raw": pa.array([b"\xff"] * count),
        "images": pa.array([[None]] * count, pa.list_(pa.struct([("bytes", pa.binary())]))),
        "tools": pa.array([{"name": None}] * count),
    }
    assert texts(read_examples(parquet(tmp_path / "a.parquet", columns))) == PAIRS
    path = tmp_path / "named.jsonl"
    path.write_bytes((tmp_path / "a.parquet").read_bytes())
    assert texts(read_examples(path)) == PAIRS
    columns["output"] = pa.array([b"Blue"] * count)
    with pytest.raises(UserError, match=r"row 1: `output` is of type bytes, expected text"):
        read_examples(parquet(tmp_path / "b.parquet", columns))
    columns["at"] = pa.array([2**62] * count, pa.timestamp("us"))
    with pytest.raises(UserError, match=r"c\.parquet: a value after row 0 cannot be read"):
        read_examples(parquet(tmp_path / "c.parquet", columns))


def test_turns_of_a_parquet_file_have_nulls_for_what_others_have(tmp_path: Path):
    import pyarrow as pa

    turns = [
        {"role": "user", "content": "Sky?", "tool_calls": None, "weight": None},
        {"role": "assistant", "content": "Red", "tool_calls": None, "weight": 0},
        {"role": "user", "content": "No.", "tool_calls": None, "weight": None},
        {"role": "assistant", "content": "Blue", "tool_calls": None, "weight": 1},
    ]
    path = parquet(tmp_path / "a.parquet", {"messages": pa.array([turns])})
    (example,) = read_examples(path)
    assert [m.train for m in example.messages if m.role == "assistant"] == [False, True]
    turns[1]["tool_calls"] = [{"name": "f"}]
    path = parquet(tmp_path / "b.parquet", {"messages": pa.array([turns])})
    with pytest.raises(UserError, match=r"row 1: turn 2 of `messages` has `tool_calls`"):
        read_examples(path)


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", {"a": ["b"]})
    for content in (path.read_bytes()[:-9], b"PAR1" + b"\0" * 40 + b"PAR1", LINES.encode()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
            read_examples(path)


def test_a_file_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    path.write_text(LINES * 2000)

    def whole(*_: Any) -> Any:
        raise AssertionError("the file is read as a whole")

    monkeypatch.setattr("nacd.data.json_rows._by_file", whole)
    assert len(read_examples(path)) == 6000


def test_a_split_of_a_folder_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its name from what the hub's client has kept of another folder, or of older files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    for text in ("one", "two"):
        for split in ("train", "test"):
            row = json.dumps({"prompt": split, "completion": text})
            (folder / f"{split}.jsonl").write_text(row)
        for name, split in (("data/mine", "train"), ("data/mine::test", "test")):
            (example,) = read_examples(name)
            assert (example.prompt, example.response) == (split, text)
    with pytest.raises(UserError, match=r"has no configurations.* data/mine::test$"):
        read_examples("data/mine:english:test")
    with pytest.raises(UserError, match=r"without a dev\.jsonl"):
        read_examples("data/mine::dev")
    assert hub_license("data/mine::test") == ""
