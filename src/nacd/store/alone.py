"""One process at a time in a run folder: a lock that the system takes back when a process ends.

The lock is `flock`'s, on a file of the folder that says who holds it; a killed process leaves the
file, not the lock. Where the system or the file system has no such lock (Windows, some network
file systems), there is none.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from nacd.errors import UserError
from nacd.store.files import UNWRITABLE

FILE = ".lock"


class Lock:
    """A folder's lock, held as long as this object is there."""

    def __init__(self, folder: Path):
        """Take the lock.

        Raises:
            UserError: another process holds it, which is named, or the folder cannot be written.
        """
        file = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = file.open("a+", encoding="utf-8")
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(
                f"--out {folder}: cannot be written ({error.strerror}); make it writable, or "
                "choose another --out."
            ) from error
        finalize(self, self._file.close)
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # no locks on this file system
            self._file.seek(0)
            holder = self._file.read(200).strip() or "another process"
            raise UserError(
                f"--out {folder}: {holder} is at work in this folder, and two would spoil each "
                "other's files; wait until it has ended, or choose another --out."
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()


_HELD: WeakValueDictionary[Path, Lock] = WeakValueDictionary()


def lock(folder: Path) -> Lock:
    """The lock of a folder; this process's own, if it holds it already.

    Raises:
        UserError: as `Lock`.
    """
    place = folder.resolve()
    held = _HELD.get(place)
    if held is None:
        held = _HELD[place] = Lock(folder)
    return held
