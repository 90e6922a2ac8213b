"""What becomes of a training that fails: a reason in the table, the traceback of a fault of ours.

    cells/<target>/<budget>/<method>/<seed>/failed.json      why, in one line
    cells/<target>/<budget>/<method>/<seed>/traceback.txt    where this program is at fault

A user's mistake, memory and the disk are expected: their reason says all. Anything else is a fault
of this program (or of a model's code). The other cells go on then too, as a grid may have run for
days; the table calls it a fault, the traceback is kept, and the command ends with status 1.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nacd.errors import UserError
from nacd.store.files import write_json, write_text

TRACEBACK = "traceback.txt"


@dataclass(frozen=True)
class Failure:
    """Why something failed. The error itself is let go: its frames would hold on to tensors."""

    why: str
    """In one line."""
    trace: str = ""
    """The traceback of a fault of this program; empty: an expected failure."""


def failure(error: Exception) -> Failure:
    """An error as it is shown and kept."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    named = f"{kind}: {text}" if text else kind
    if isinstance(error, UserError):
        return Failure(text)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return Failure(
            f"out of memory ({kind}); give a smaller --batch-size or --max-tokens, or "
            "--gradient-checkpointing"
        )
    if isinstance(error, OSError):
        return Failure(named)
    return Failure(f"{named} (a fault of this program)", "".join(traceback.format_exception(error)))


def keep_failure(place: Path, key: Mapping[str, Any], found: Failure) -> dict[str, Any]:
    """Write why a cell failed into its folder; the cell as the table takes it."""
    cell = {**key, "failed": found.why}
    write_json(place / "failed.json", cell)
    if found.trace:
        write_text(place / TRACEBACK, found.trace)
    else:
        (place / TRACEBACK).unlink(missing_ok=True)
    return cell


def forget_failure(place: Path) -> None:
    """Take away what an earlier call left of a failure."""
    for name in ("failed.json", TRACEBACK):
        (place / name).unlink(missing_ok=True)


def fault_lines(faults: Sequence[Path]) -> list[str]:
    """What to say of tracebacks at the end of a command."""
    if not faults:
        return []
    return [
        f"{len(faults)} trainings failed by a fault of this program; its traceback: {faults[0]}",
        "",
    ]
