"""A piece of work claimed by one of several jobs that share a folder: a file that only one makes.

    .claims/<name>-0    JSON: who has claimed it, on which machine

The holder touches its claims every few seconds. A claim is stale when its process is gone from this
machine, or when the file has not been touched for a while, by the file system's own clock. A stale
claim is taken over by making `<name>-1`, then `-2`, ...: of several that try, one succeeds. Should
a holder that was only slow go on, the work is done twice, and the result is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from nacd.errors import UserError
from nacd.store.files import UNWRITABLE

FOLDER = ".claims"
BEAT = 10.0
"""Seconds between two touches of a claim."""
STALE = 120.0
"""Seconds without one after which its holder is taken to be gone."""
PAUSE = 1.0
"""Seconds between two looks at a claim that is waited for."""


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds."""

    file: Path

    def release(self) -> None:
        """Give it back: the work is done, or given up."""
        _HELD.discard(self.file)
        self.file.unlink(missing_ok=True)


_HELD: set[Path] = set()


def claim(folder: Path, name: str) -> Claim | None:
    """Claim a piece of work; None: another living process has it.

    Args:
        folder: that the jobs share.
        name: of the work.

    Raises:
        UserError: the folder cannot be written.
    """
    place = folder / FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
        latest = _latest(place, name)
        if latest is not None and not _stale(latest):
            return None
        number = 0 if latest is None else _number(latest) + 1
        file = place / f"{_plain(name)}-{number}"
        with file.open("x", encoding="utf-8") as made:
            made.write(json.dumps(_myself()))
    except FileExistsError:  # another was faster
        return None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"--out {folder}: cannot be written ({error.strerror}); make it writable, or choose "
            "another --out."
        ) from error
    if latest is not None:
        latest.unlink(missing_ok=True)
    _HELD.add(file)
    _keep_alive()
    return Claim(file)


def claimed(folder: Path, name: str) -> bool:
    """Whether another living process has claimed a piece of work."""
    latest = _latest(folder / FOLDER, name)
    return latest is not None and latest not in _HELD and not _stale(latest)


@contextlib.contextmanager
def turn(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other living process has claimed a piece of work, and hold it inside.

    Raises:
        UserError: the folder cannot be written.
    """
    while (mine := claim(folder, name)) is None:
        time.sleep(PAUSE)
    try:
        yield
    finally:
        mine.release()


def _plain(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _number(file: Path) -> int:
    return int(file.name.rpartition("-")[2])


def _latest(place: Path, name: str) -> Path | None:
    """The claim that counts: the one with the highest number."""
    named = re.compile(rf"{re.escape(_plain(name))}-\d+")
    files = [file for file in place.glob("*") if named.fullmatch(file.name)]
    return max(files, key=_number, default=None)


def _stale(file: Path) -> bool:
    try:
        said = file.read_text(encoding="utf-8")
        touched = file.stat().st_mtime
    except FileNotFoundError:  # released just now
        return True
    holder: dict[str, Any] = {"machine": ""}
    with contextlib.suppress(ValueError):  # its holder is just writing it
        holder = json.loads(said)
    if holder["machine"] == socket.gethostname():
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(holder["process"]).create_time() - holder["began"]) > 1
        return True
    return _now(file.parent) - touched > STALE


def _now(place: Path) -> float:
    """The time, as the file system has it."""
    probe = place / f"now.partial-{socket.gethostname()}-{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _myself() -> dict[str, str | int | float]:
    began = psutil.Process().create_time()
    return {"machine": socket.gethostname(), "process": os.getpid(), "began": began}


@cache
def _keep_alive() -> None:
    def touch() -> None:
        while True:
            time.sleep(BEAT)
            for file in [*_HELD]:
                with contextlib.suppress(OSError):
                    os.utime(file)

    threading.Thread(target=touch, daemon=True).start()
