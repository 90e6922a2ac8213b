"""Rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nacd.data.row import listed
from nacd.errors import UserError


def parquet_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Pairs of (where the row came from, the row) of a Parquet file.

    Args:
        path: the file.
        name: as the user calls it.

    Raises:
        UserError: it is none, or holds a value that cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if twice := sorted({column for column in columns if columns.count(column) > 1}):
                raise UserError(
                    f"{name} has the column {listed(twice)} twice. Write it with names of their "
                    "own."
                )
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        why = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"{name} is not a readable Parquet file ({why}). Fetch it or write it anew."
        ) from None
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{name}: a value after row {number} cannot be read ({str(error).splitlines()[0]}). "
            "Write that column as text."
        ) from None
