"""What an earlier call has left in a folder, which a forecast leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nacd.store.files import read_json


class Done:
    """The results that a folder holds; None: there is no folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def read(self, name: str) -> dict[str, Any] | None:
        """What is kept under the name; None: nothing yet."""
        file = self.folder and self.folder / f"{name}.json"
        return read_json(file) if file and file.is_file() else None

    def has(self, name: str) -> bool:
        """Whether a result is kept under the name."""
        return self.folder is not None and (self.folder / f"{name}.json").is_file()

    def count(self, pattern: str) -> int:
        """Files of a pattern."""
        return 0 if self.folder is None else sum(1 for _ in self.folder.glob(pattern))

    def learned(self, steps: int) -> float:
        """The share of a distillation's outer steps that are done."""
        file = self.folder and self.folder / "distill" / "metrics.jsonl"
        if not file or not file.is_file():
            return 0.0
        with file.open(encoding="utf-8") as lines:
            return min(1.0, sum(1 for _ in lines) / (1 + steps))  # the first is the start
