"""Train, target, validation and test rows, decided by a hash of each row alone.

Rows are ranked by SHA-256(salt, digest): the first are test rows, the next validation rows, the
next target rows, the rest training rows. So a split does not depend on the order of the file, and a
row added or removed moves no more rows across a border than the change in the counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from nacd.data.example import Example
from nacd.data.stored import Examples
from nacd.errors import UserError

MIN_ROWS = 8
_SALT = "nacd split 1"


@dataclass(frozen=True)
class Splits:
    """The four parts of a file, each in the file's order."""

    train: Sequence[Example]
    """What any method chooses or distils from."""
    target: Sequence[Example]
    """What any method may look at for its target."""
    development: Sequence[Example]
    """Chooses learning rates and defaults."""
    report: Sequence[Example]
    """Read once, for the table."""

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each part."""
        return {name: len(getattr(self, name)) for name in SPOKEN}


SPOKEN = {"train": "training", "target": "target", "development": "validation", "report": "test"}
"""The parts, by the names that people know."""


def split_by_hash(
    examples: Sequence[Example],
    *,
    target: int = 64,
    development: float | int = 0.1,
    report: float | int = 0.2,
) -> Splits:
    """Split one file's rows; copies of a row always land in the same part.

    Args:
        examples: the rows.
        target: most rows for target (never over a fifth of the file); 0: none, when a file is given
            for them.
        development: the validation rows: a fraction of the distinct rows (at most 200 rows), or an
            exact number.
        report: the test rows: a fraction (at most 400 rows), or an exact number.

    Raises:
        UserError: no row left to train on, or fewer than 8 distinct rows and no held-out file.
    """
    rows = Examples.of(examples)
    total, ranks = _ranked(rows)
    if total < MIN_ROWS and (development or report):
        raise UserError(
            f"{total} distinct rows are too few to split into training, target, validation and "
            f"test: expected at least {MIN_ROWS}. Add rows, or name files: --target, --heldout."
        )
    counts = (
        _count(report, total, most=400),
        _count(development, total, most=200),
        min(target, max(1, total // 5)),
    )
    if min(counts) < 0 or sum(counts) >= total:
        raise UserError(
            f"{counts[0]} test, {counts[1]} validation and {counts[2]} target rows leave none "
            f"of {total} distinct rows to train on. Ask for fewer, or name files: --target, "
            "--heldout."
        )
    ends = [*accumulate(counts)]
    parts = np.searchsorted(ends, ranks, side="right")  # 0: test, ... 3: training rows
    return Splits(*(rows.take(np.flatnonzero(parts == part)) for part in (3, 2, 1, 0)))


def split_heldout(examples: Sequence[Example]) -> tuple[Examples, Examples]:
    """Cut a held-out file into validation (a third, at most 200) and test rows, by hash.

    Raises:
        UserError: fewer than 2 distinct rows.
    """
    rows = Examples.of(examples)
    total, ranks = _ranked(rows)
    if total < 2:
        raise UserError(
            f"{total} distinct held-out rows cannot be cut into validation and test rows: "
            "expected at least 2. Give --heldout a longer file."
        )
    border = total - min(200, max(1, total // 3))
    return (
        rows.take(np.flatnonzero(ranks >= border)),
        rows.take(np.flatnonzero(ranks < border)),
    )


def _ranked(rows: Examples) -> tuple[int, np.ndarray]:
    """The number of distinct rows, and each row's place among them by the deciding hash, (n,)."""
    distinct, which = np.unique(rows.hashes.view("V32")[:, 0], return_inverse=True)
    keys = [
        hashlib.sha256(f"{_SALT}\n{digest.tobytes().hex()}".encode()).digest()
        for digest in distinct
    ]
    places = np.empty(len(keys), dtype=np.int64)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return len(keys), places[which]


def _count(size: float | int, total: int, most: int) -> int:
    if isinstance(size, int):
        return size
    return min(most, max(1, round(size * total))) if size else 0
