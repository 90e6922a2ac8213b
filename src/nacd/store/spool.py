"""Many small records, kept outside the memory: a sequence whose items lie in a temporary file.

The file has no name and goes when the last sequence that reads it goes, or the process ends. What
stays in memory is where each record begins, the last megabyte, and what a kind of sequence wants to
know of all its items without reading them.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np

from nacd.errors import UserError

T = TypeVar("T")

BUFFER = 1 << 20
"""Bytes that are written, and read ahead, at once."""


class Spool:
    """Records of bytes: appended, then read by number."""

    def __init__(self) -> None:
        self._starts = array("q", [0])
        self._tail = bytearray()
        self._file: Any = None

    def __len__(self) -> int:
        """Number of records."""
        return len(self._starts) - 1

    def append(self, record: bytes) -> None:
        """Add a record.

        Raises:
            UserError: the disk of the temporary folder is full, or it cannot be written.
        """
        self._tail += record
        self._starts.append(self._starts[-1] + len(record))
        if len(self._tail) >= BUFFER:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                    weakref.finalize(self, self._file.close)
                self._file.seek(0, os.SEEK_END)
                while self._tail:
                    del self._tail[: self._file.write(self._tail)]
            except OSError as error:
                raise UserError(
                    f"the rows do not fit into the temporary folder {tempfile.gettempdir()} "
                    f"({error.strerror}): free some space there, or name another folder by the "
                    "environment variable TMPDIR."
                ) from error

    def read(self, first: int, last: int) -> list[bytes]:
        """Records `first` to `last`, that one left out."""
        starts = self._starts[first : last + 1]
        written = self._starts[-1] - len(self._tail)
        block = b""
        if starts[0] < written:
            block = self._from_file(starts[0], min(written, starts[-1]))
        if starts[-1] > written:
            tail = memoryview(self._tail)
            block += bytes(tail[max(0, starts[0] - written) : starts[-1] - written])
        at = starts[0]
        return [block[a - at : b - at] for a, b in pairwise(starts)]

    def _from_file(self, start: int, stop: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), stop - start, start)
        self._file.seek(start)
        return self._file.read(stop - start)


class Spooled(Sequence[T], Generic[T]):
    """A sequence of values in a `Spool`, or of some of them; each is made anew when it is read.

    A kind of values says how one becomes bytes and back. Slices and `take` copy no record.
    """

    AHEAD = 512
    """Records that are read at once where they are read in order."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._index: np.ndarray | None = None
        """Numbers of the records, where they are not all of them in their order."""

    @abstractmethod
    def _pack(self, value: T) -> bytes: ...

    @abstractmethod
    def _unpack(self, record: bytes) -> T: ...

    @classmethod
    def of(cls, values: Iterable[T]) -> Self:
        """The values, read once; of this kind already: as they are."""
        if isinstance(values, cls):
            return values
        made = cls()
        for value in values:
            made.append(value)
        return made

    def append(self, value: T) -> None:
        """Add a value at the end; not to a part of a sequence."""
        assert self._index is None
        self._spool.append(self._pack(value))

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The values at these places, in this order."""
        part = copy(self)
        places = np.asarray(indices, dtype=np.int64)
        part._index = places if self._index is None else self._index[places]
        return part

    def column(self, whole: Any, dtype: Any, width: int = 0) -> np.ndarray:
        """What a buffer of one entry a record says of the values here, (n,) or (n, width)."""
        found = np.frombuffer(whole, dtype=dtype).copy()  # a view would keep the buffer from growth
        found = found.reshape(-1, width) if width else found
        return found if self._index is None else found[self._index]

    def __len__(self) -> int:
        """Number of values."""
        return len(self._spool) if self._index is None else len(self._index)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        """One value, or a part of the sequence."""
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        size = len(self)
        if not -size <= index < size:
            raise IndexError(index)
        place = index % size if self._index is None else int(self._index[index])
        return self._unpack(self._spool.read(place, place + 1)[0])

    def __iter__(self) -> Iterator[T]:
        """All values in their order, read in blocks where they lie side by side."""
        for start in range(0, len(self), self.AHEAD):
            stop = min(start + self.AHEAD, len(self))
            if self._index is None:
                first, last, places = start, stop, range(stop - start)
            else:
                own = self._index[start:stop]
                first, last = int(own.min()), int(own.max()) + 1
                if last - first > 4 * len(own):  # scattered
                    for place in own.tolist():
                        yield self._unpack(self._spool.read(place, place + 1)[0])
                    continue
                places = (own - first).tolist()
            records = self._spool.read(first, last)
            for place in places:
                yield self._unpack(records[place])

    def __eq__(self, other: object) -> bool:
        """Whether another sequence holds equal values."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The kind and the number of values."""
        return f"{type(self).__name__}({len(self)} values)"
