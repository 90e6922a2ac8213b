"""What a comparison's folder holds so far: its cells in one Parquet file, the table, the page.

A call that asks for other rows, budgets or models adds to them; so does another process at work in
the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, parquet

from nacd.comparison.failures import TRACEBACK
from nacd.comparison.grid import cell_folder
from nacd.comparison.table import summarise, write_parquet
from nacd.errors import UserError
from nacd.model.files import said
from nacd.store.cache import Cache
from nacd.store.claims import turn
from nacd.store.files import read_json, write_json
from nacd.store.processes import writes

Key = tuple[str, str, str, int]
"""Target model, budget, row, training seed."""
LATER = ("draw", "choosing_seconds", "choosing_flops")
"""What a cell is given beside its own result, and only the Parquet file has."""


@dataclass
class Kept:
    """The table, the cells and the page on disk, from the first row on."""

    folder: Path
    sizes: Mapping[str, int]
    asked: Set[Key]
    """Trainings of this call's grid."""
    page: Callable[[Path], Path]
    """Writes the page of a folder; its path."""
    cells: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """What this call has made or read so far."""

    def add(self, cells: Sequence[dict[str, Any]]) -> None:
        """Take the cells of one more row."""
        self.cells |= {_key(cell): cell for cell in cells}
        if writes():
            self.write()

    def table(self) -> list[dict[str, Any]]:
        """The summary of the cells so far."""
        return summarise([*self._all().values()])

    def write(self) -> Path:
        """Write all of it, with what other jobs have written so far; the page's path."""
        with turn(self.folder, "table"):
            return self._write()

    def _write(self) -> Path:
        cells = self._all()
        write_parquet([*cells.values()], self.folder / "results.parquet")
        counted = {"done": len(cells), "of": len(self.asked | cells.keys())}
        table = summarise([*cells.values()])
        found = {"table": table, "sizes": self.sizes, "trainings": counted}
        write_json(self.folder / "results.json", found)
        return self.page(self.folder)

    def faults(self) -> list[Path]:
        """Tracebacks of this call's cells that failed by a fault of this program."""
        places = (self.folder / cell_folder(*key) / TRACEBACK for key in self.cells)
        return [place for place in places if place.is_file()]

    def _all(self) -> dict[Key, dict[str, Any]]:
        """This call's cells, and those that others have left."""
        return earlier(self.folder) | self.cells


def earlier(folder: Path) -> dict[Key, dict[str, Any]]:
    """The cells that `results.parquet` names, where their own files are still there."""
    file = folder / "results.parquet"
    found: dict[Key, dict[str, Any]] = {}
    for row in _rows(file):
        key = _key(row)
        if any(os.sep in str(part) or ".." in str(part) for part in key[1:]):
            raise UserError(
                f"{file}: names a cell outside its folder ({key[1]}, {key[2]}); {_MEND}."
            )
        place = cell_folder(*key)
        failed = folder / place / "failed.json"
        cell = Cache(folder).kept(f"{place}/result")
        if cell is None and failed.is_file():
            cell = read_json(failed)
        if cell is not None:
            about = {k: row[k] for k in ("target", "budget", "method", "seed")}
            about |= {k: row.get(k) for k in LATER}
            found[key] = cell | about
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        return parquet.read_table(file).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{file}: damaged ({said(error)}); {_MEND}.") from error


_MEND = "delete it, and run the same command again: the trainings themselves are kept"


def _key(cell: Mapping[str, Any]) -> Key:
    return cell["target"], cell["budget"], cell["method"], cell["seed"]
