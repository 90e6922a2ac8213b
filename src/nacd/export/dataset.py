"""The distilled rows as a data set folder that `datasets.load_dataset` reads as it is.

    train.jsonl     one row a line; the file that the card's header names
    train.parquet   the same rows
    README.md       the data set card (`nacd.export.learned_card`, `nacd.export.chosen_card`)

A row is `prompt` and `completion` (strings for a raw template, lists of messages for a chat one),
the form in which TRL takes its loss over the completion alone, and where the row came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from nacd.errors import UserError
from nacd.files import whole, write_text

Text = str | list[dict[str, str]]


@dataclass(frozen=True)
class DatasetRow:
    """One exported row."""

    prompt: Text
    """As `Template.row` gives it: text, or messages of `role` and `content`."""
    completion: Text
    """The response: text, or one message."""
    seed_row: str
    """Where the seed row stands: `mine.jsonl:12`."""
    seed_digest: str
    """The seed's `Example.digest`."""
    tokens_changed: float
    """Share of the learnable tokens that are not the seed's any more, 0 to 1."""

    @property
    def chat(self) -> bool:
        """Whether the row is messages rather than text."""
        return not isinstance(self.prompt, str)


def shared_name(name: str) -> str:
    """A file, a folder or a row of one by the name that it goes out under.

    An absolute path loses its folders: they are one machine's, and may name a person.
    """
    return Path(name).name if Path(name).is_absolute() else name


def write_dataset(folder: Path, rows: Sequence[DatasetRow], card: str) -> Path:
    """Write the rows, as JSON lines and as Parquet, and the card; each file whole or not at all.

    Args:
        folder: made if needed; the three files in it are replaced.
        rows: all of one form, text or messages.
        card: the text of `README.md`, with a header that names `train.jsonl` as the data.

    Returns:
        The path of `train.jsonl`.

    Raises:
        UserError: no row, rows of both forms, or the disk is full.
    """
    if not rows:
        raise UserError(f"{folder}: no rows to write; --budget asks for at least one.")
    if len({(type(row.prompt), type(row.completion)) for row in rows}) > 1:
        raise UserError(
            f"{folder}: some rows are text and some are messages; write all of them with one "
            "--template."
        )
    records: list[dict[str, Any]] = [asdict(row) for row in rows]
    lines = folder / "train.jsonl"
    write_text(lines, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    with whole(folder / "train.parquet") as partial:
        parquet.write_table(pa.Table.from_pylist(records), partial)
    write_text(folder / "README.md", card)
    return lines
