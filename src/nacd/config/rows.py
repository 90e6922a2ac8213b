"""Which rows are read, how they are rendered, and what is held out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from nacd.config.settings import convert
from nacd.data.choices import Answers
from nacd.data.given import name_of
from nacd.errors import UserError

if TYPE_CHECKING:
    from nacd.config.settings import Converted

    Rows = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
    Data = Converted[str, Rows]
    OtherData = Converted[str | None, Rows | None]
else:  # what flags take: from Python, rows may be given too
    _NEEDED = arg(help_behavior_hint="(required; of `nacd evaluate` unless it has --tasks)")
    Data, OtherData = Annotated[str, _NEEDED], str | None
UNNAMED: Any = ""
NONE: Any = None


@dataclass(frozen=True)
class ReadConfig:
    """Which rows, and how they are read and rendered."""

    data: Data = UNNAMED
    """JSONL, JSON, CSV or Parquet file, a pattern of files (`'shards/*.jsonl'`), or a hub id
    (`owner/name`, `owner/name:config:split`)."""
    columns: tuple[str, ...] = ()
    """Column names where they are not the usual ones: `instruction=question output=reply`."""
    ignore_columns: tuple[str, ...] = ()
    """Columns, and keys of turns, to leave out that would otherwise be refused: `tools weight`."""
    choices: Literal["cloze", "letter"] = "cloze"
    """Multiple choice: answer with the choice's text, or with its letter."""
    answers: Answers = "auto"
    """How multiple-choice rows name their answers: by number from 0 or from 1, by letter, by text;
    `auto`: whichever fits all rows of a file."""
    template: str = "auto"
    """`auto`, `chat`, `qa`, `alpaca`, `plain`, `verbatim`, or text with {prompt}, {response}."""
    max_tokens: int = 512
    """Longest row in tokens, prompt and response; longer ones are dropped and counted."""

    def __post_init__(self) -> None:
        """Name the data by its path or hub id; rows in memory are written to a file."""
        for name in {"data", "target", "heldout"} & vars(self).keys():
            setting = f"{type(self).__name__}({name}=...)"
            convert(self, **{name: lambda given, setting=setting: name_of(given, setting)})

    def mapping(self) -> dict[str, str]:
        """`columns` as a mapping from our names to the file's.

        Raises:
            UserError: an entry without `=`, or a name that stands twice.
        """
        pairs = [entry.partition("=") for entry in self.columns]
        for name, equals, column in pairs:
            if not (name and equals and column):
                raise UserError(
                    f"--columns {name}: expected NAME=COLUMN, for example instruction=question."
                )
        mapping = {name: column for name, _, column in pairs}
        if len(mapping) < len(pairs):
            raise UserError(f"--columns {' '.join(self.columns)}: a name stands twice; keep one.")
        return mapping


@dataclass(frozen=True)
class DataConfig(ReadConfig):
    """Which rows, how they are read and rendered, and what is held out."""

    target: OtherData = NONE
    """File or hub id of target rows; without it, some rows of --data are set aside for them."""
    heldout: OtherData = NONE
    """Held-out file or hub id (a third for validation, the rest test rows); else rows of --data."""
    target_rows: int = 64
    """Most rows set aside as target rows."""
    group_column: str = ""
    """Column that names a row's group (a subject, a source): strata, and the subtasks of LESS."""
    license: str = ""
    """Licence of --data by the hub's name (`apache-2.0`), for the card; empty: the hub card's."""
    language: str = ""
    """Languages of --data by the hub's codes (`en`, `en,de`), for the data card; empty: unsaid."""
