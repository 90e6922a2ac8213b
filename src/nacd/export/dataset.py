"""The distilled rows as a data set folder that `datasets.load_dataset` reads as it is.

    train.parquet   the rows; the file that the card's header names
    train.jsonl     the same rows, one a line
    README.md       the data set card (`nacd.export.learned_card`, `nacd.export.chosen_card`)

Readers of JSON lines guess at types: Arrow, and so `datasets`, makes timestamps of a column whose
texts are all dates. Parquet says that they are texts.

A row is `prompt` and `completion` (strings for a raw template, lists of messages for a chat one),
the form in which TRL takes its loss over the completion alone, and where the row came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from nacd.errors import UserError
from nacd.store.files import json_lines, whole, write_text

Text = str | list[dict[str, str]]


@dataclass(frozen=True)
class DatasetRow:
    """One exported row."""

    prompt: Text
    """As `Template.row` gives it: text, or messages of `role` and `content`."""
    completion: Text
    """The response: text, or one message."""
    seed_row: str
    """Where the starting row stands: `mine.jsonl:12`."""
    seed_digest: str
    """The starting row's `Example.digest`."""
    tokens_changed: float
    """Share of the learnable tokens that are not the starting row's any more, 0 to 1."""

    @property
    def chat(self) -> bool:
        """Whether the row is messages rather than text."""
        return not isinstance(self.prompt, str)

    @property
    def texts(self) -> list[str]:
        """The texts of the prompt and of the completion, turn by turn."""
        parts = (self.prompt, self.completion)
        return [
            text
            for part in parts
            for text in ([part] if isinstance(part, str) else [turn["content"] for turn in part])
        ]


def shared_name(name: str) -> str:
    """A file, a folder or a row of one by the name that it goes out under.

    An absolute path loses its folders: they are one machine's, and may name a person. Bytes of a
    file's name that are no UTF-8 are written out (`\\udcff`).
    """
    shown = Path(name).name if Path(name).is_absolute() else name
    return shown.encode("utf-8", "backslashreplace").decode()


def rows_name(rows: Sequence[DatasetRow]) -> str:
    """A name that other rows do not have: `rows-` and twelve digits of their lines' SHA-256.

    Whatever keeps something under a name is given this one: `datasets` keeps what it has read of a
    folder under the folder's name and what the card's header says, whatever the files hold
    (`LocalDatasetModuleFactory`, from 4.0 to 5.2).
    """
    return lines_name(json_lines(map(asdict, rows)).encode())


def lines_name(lines: bytes) -> str:
    """`rows_name` of the rows that a `train.jsonl` of these bytes holds."""
    return f"rows-{hashlib.sha256(lines).hexdigest()[:12]}"


def write_dataset(folder: Path, rows: Sequence[DatasetRow], card: str) -> Path:
    """Write the rows, as JSON lines and as Parquet, and the card; each file whole or not at all.

    Args:
        folder: made if needed; the three files in it are replaced.
        rows: all of one form, text or messages.
        card: the text of `README.md`, with a header that names `train.parquet` as the data.

    Returns:
        The path of `train.jsonl`.

    Raises:
        UserError: no row, rows of both forms, a row that is no text, or the disk is full.
    """
    if not rows:
        raise UserError(f"{folder}: no rows to write; --budget asks for at least one.")
    if len({(type(row.prompt), type(row.completion)) for row in rows}) > 1:
        raise UserError(
            f"{folder}: some rows are text and some are messages; write all of them with one "
            "--template."
        )
    for row in rows:
        _refuse_half_characters(row)
    write_rows(folder, "train", [asdict(row) for row in rows])
    write_text(folder / "README.md", card)
    return folder / "train.jsonl"


def write_rows(folder: Path, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as `<name>.jsonl` and `<name>.parquet`, each whole or not at all."""
    write_text(folder / f"{name}.jsonl", json_lines(records))
    with whole(folder / f"{name}.parquet") as partial:
        parquet.write_table(pa.Table.from_pylist([*records]), partial)


def _refuse_half_characters(row: DatasetRow) -> None:
    half = next((c for text in row.texts for c in text if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise UserError(
            f"{row.seed_row}: holds U+{ord(half):04X}, half of a surrogate pair and no character, "
            "which no file of text can hold. Mend that row in the source data."
        )
