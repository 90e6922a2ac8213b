"""Metrics to a tracker that people already use, beside our own `metrics.jsonl`.

The trackers are accelerate's (`accelerate.tracking`). All stay on this machine unless their own
environment variables send them on: Weights & Biases is offline unless WANDB_MODE says otherwise,
trackio and TensorBoard write files.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nacd.errors import UserError
from nacd.store.extras import require
from nacd.store.processes import writes

TRACKERS = ("trackio", "tensorboard", "wandb")
PROJECT = "nacd"

Log = Callable[[Mapping[str, Any], int], None]
"""Told of a row of metrics and its step."""


def silent(row: Mapping[str, Any], step: int) -> None:
    """Log nowhere."""


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed.

    Args:
        name: one of `TRACKERS`, or empty: none.

    Raises:
        UserError: with the command that installs it.
    """
    if not name:
        return
    if name not in TRACKERS:
        raise UserError(f"--track {name}: unknown; the trackers are {', '.join(TRACKERS)}.")
    require(
        name,
        f"--track {name}",
        "leave --track out (metrics are kept in the run folder anyway)",
    )


@contextlib.contextmanager
def tracking(name: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """Open a tracker for one run; it is closed at the end, whatever happens.

    Args:
        name: one of `TRACKERS`, or empty: `silent`.
        folder: the run folder; its name is the run's, and the tracker's files go to `tracking/`.
        config: the run's settings, nested.

    Yields:
        Where rows of metrics are logged; of a row, the finite numbers.

    Raises:
        UserError: an unknown tracker, or one that is not installed.
    """
    check_tracker(name)
    if not name or not writes():
        yield silent
        return
    place = (folder / "tracking").resolve()
    place.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("TRACKIO_DIR", str(place))  # read when trackio is imported

    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from nacd.store.key import flatten

    PartialState()  # the trackers' own logger asks for it
    options: dict[str, dict[str, Any]] = {
        "trackio": {"run_name": PROJECT, "name": folder.name, "resume": "allow", "embed": False},
        "tensorboard": {"run_name": PROJECT, "logging_dir": str(place)},
        "wandb": {"run_name": PROJECT, "name": folder.name, "dir": str(place)},
    }
    tracker: Any = LOGGER_TYPE_TO_CLASS[name](**options[name])
    tracker.start()

    def log(row: Mapping[str, Any], step: int) -> None:
        numbers = {key: float(value) for key, value in row.items() if _number(value)}
        tracker.log(numbers, step=step)

    try:
        tracker.store_init_configuration({key: _plain(v) for key, v in flatten(config).items()})
        yield log
    finally:
        tracker.finish()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """A setting as the trackers take it."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
