"""Several processes at one command, as `accelerate launch` and `torchrun` start them.

Every process runs the whole program, and all hold the same numbers: what takes time is either a
list of pieces of work that do not depend on each other, or kept in the run folder.

    spread(pieces, do)    each piece is done by one process, whichever is free; all get the results,
                          in the pieces' order, so that a sum over them has the same bits however
                          many processes there are
    first(do)             the first process does it, all get the result

What a piece writes is written by the process that does it; everything else is written by the first
process alone, which also prints (`writes`). Results travel by gloo, whatever the device. In one
process, and inside a piece, both only call `do`.

A process that waits looks whether the others live: each leaves a sign of life every few seconds. If
one has ended, the others end too, with one message; pieces that were kept as files stay.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nacd.errors import UserError

P = TypeVar("P")
R = TypeVar("R")

BEAT = 2.0
"""Seconds between two signs of life."""
LOST = 60.0
"""Seconds without one after which a process is taken to be gone."""
TRANSFER = 1800
"""Seconds that results may take from process to process, once all processes have theirs."""
KEPT = "What is done is kept; the same command goes on from there."


class Lost(KeyboardInterrupt):
    """Another process of the launch has ended; no error of the work in hand, which `except
    Exception` would take for a failed training.

    Attributes:
        speaks: whether this process is the one that says so.
    """

    def __init__(self, message: str, speaks: bool):
        super().__init__(message, speaks)  # both travel with it
        self.speaks = speaks

    def __str__(self) -> str:
        """The message alone."""
        return self.args[0]


@dataclass
class Launch:
    """This process among those that were started together."""

    rank: int
    count: int
    store: Any
    """What the processes tell each other by; `torch.distributed.Store`."""
    group: Any = None
    """Of all processes, on gloo."""
    apart: bool = False
    """Whether this process does something of its own just now: a piece."""
    together: bool = False
    """Whether all processes have to do all pieces together: each holds a share of the model."""
    meetings: int = 0
    seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    """Of every process, its last sign of life, and when it was new here."""
    ended: threading.Event = field(default_factory=threading.Event)

    def meet(self) -> None:
        """Wait until all processes are here.

        Raises:
            Lost: one of them will not come.
        """
        self.meetings += 1
        self.store.set(f"at/{self.rank}", str(self.meetings))
        self.seen.clear()
        pause = 0.001
        while missing := [r for r in range(self.count) if self._at(r) < self.meetings]:
            self._require(missing)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def gather(self, what: str, value: Any) -> list[Any]:
        """Every process's value.

        Args:
            what: names the place in the program: it is the same in all processes.
            value: of this process.

        Raises:
            Lost: a process has ended.
        """
        import torch.distributed as dist

        with self._reachable():
            self.meet()
            parts: list[Any] = [None] * self.count
            dist.all_gather_object(parts, (what, _packed(value)), group=self.group)
        places = {place for place, _ in parts}
        if len(places) > 1:
            raise Lost(
                f"the processes of this launch went different ways ({'; '.join(sorted(places))}); "
                f"do all of them see the same files? {KEPT}",
                self.rank == 0,
            )
        return [_unpacked(part) for _, part in parts]

    def lost(self, gone: Sequence[int] = ()) -> Lost | None:
        """What to say if a process has ended: one that said so, or those that are known to be."""
        notes = {r: self._note(r) for r in range(self.count) if r != self.rank}
        said = {r: note for r, note in notes.items() if note is not None}
        if not said and not gone:
            return None
        which = sorted({*said, *gone})
        whose = f"process {which[0]} of {self.count}"
        why = said.get(which[0], "")
        told = f"{whose} has ended: {why}" if why else f"{whose} is gone (killed, or out of reach)"
        alive = set(range(self.count)) - set(which)
        speaks = 0 not in said and self.rank == min(alive)  # the first has spoken for itself
        return Lost(f"{told.rstrip('.')}. {KEPT}", speaks)

    def silent(self) -> list[int]:
        """The processes that leave no sign of life in the time of one and a half."""
        others = [rank for rank in range(self.count) if rank != self.rank]
        before = [self.store.get(f"beat/{rank}") for rank in others]
        time.sleep(1.5 * BEAT)
        now = [self.store.get(f"beat/{rank}") for rank in others]
        return [others[k] for k in range(len(others)) if now[k] == before[k]]

    def _at(self, rank: int) -> int:
        return int(self.store.get(f"at/{rank}"))

    def _note(self, rank: int) -> str | None:
        name = f"ended/{rank}"
        return self.store.get(name).decode() if self.store.check([name]) else None

    def _require(self, missing: Sequence[int]) -> None:
        now, gone = time.monotonic(), []
        for rank in missing:
            beat = self.store.get(f"beat/{rank}")
            if self.seen.get(rank, (b"", now))[0] != beat:
                self.seen[rank] = (beat, now)
            if now - self.seen[rank][1] > LOST:
                gone.append(rank)
        if lost := self.lost(gone):
            raise lost

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """Turn torch's errors on a connection that has broken into one of ours."""
        try:
            yield
        except RuntimeError as error:
            lost = None
            with contextlib.suppress(RuntimeError):
                time.sleep(BEAT)  # let a process that ends say why
                lost = self.lost()
            if lost is None:
                lost = Lost(f"process 0 of {self.count} is gone. {KEPT}", self.rank == 1)
            raise lost from error

    def beat(self) -> None:
        """Leave signs of life until this process ends."""
        number = 0
        while not self.ended.wait(BEAT):
            number += 1
            try:
                self.store.set(f"beat/{self.rank}", str(number))
            except RuntimeError:  # the launch is over
                return


_LAUNCH: Launch | None = None


def launched() -> bool:
    """Whether this process was started as one of several, by the environment's variables."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def start() -> None:
    """Join the processes that were started together; does nothing in a process started alone."""
    global _LAUNCH
    if _LAUNCH is not None or not launched():
        return
    from datetime import timedelta

    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, rank, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        for name in ("at", "beat"):
            store.set(f"{name}/{rank}", "0")
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
        group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=TRANSFER))
    except RuntimeError as error:
        if "connection" not in str(error).lower():
            raise
        # it has ended before this process was ready
        raise Lost(f"process 0 of {count} is gone. {KEPT}", rank == 1) from error
    _LAUNCH = launch = Launch(rank, count, store, group)
    threading.Thread(target=launch.beat, daemon=True).start()

    def stopped(*_: Any) -> None:  # a launcher stops the others when one process has failed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lost = None
        with contextlib.suppress(RuntimeError):
            lost = launch.lost() or launch.lost(launch.silent())
        raise lost or Lost(f"stopped by its launcher. {KEPT}", rank == 0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stopped)


def end(error: str | None = None) -> None:
    """Leave the launch.

    Args:
        error: why this process ends before its work is done, for the others to say; empty: because
            another has ended; None: it is done, and all wait until the others are, too.

    Raises:
        Lost: another process has ended before its work was done.
    """
    global _LAUNCH
    launch, _LAUNCH = _LAUNCH, None
    if launch is None:
        return
    import torch.distributed as dist

    try:
        if error is None:
            launch.gather("end", None)
        elif error:
            with contextlib.suppress(RuntimeError):
                launch.store.set(f"ended/{launch.rank}", error)
    finally:
        launch.ended.set()
        if error is None:
            dist.destroy_process_group()


def rank() -> int:
    """The number of this process among those that were started together, from 0 on."""
    return int(os.environ["RANK"]) if launched() else 0


def count() -> int:
    """How many processes there are."""
    return 1 if _LAUNCH is None else _LAUNCH.count


def writes() -> bool:
    """Whether what this process makes just now is its own to write: in the first process, and in a
    piece."""
    return _LAUNCH is None or _LAUNCH.rank == 0 or _LAUNCH.apart


def work_together() -> None:
    """From now on, all processes do all pieces together: each holds a share of the model."""
    if _LAUNCH is not None:
        _LAUNCH.together = True


def broken(error: BaseException) -> Lost | None:
    """What to say of an error that comes of a process that has ended amid work on shares."""
    said = str(error).lower()
    if _LAUNCH is None or not any(word in said for word in ("gloo", "nccl", "connection")):
        return None
    return Lost(f"another process of this launch has ended. {KEPT}", _LAUNCH.rank == 0)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works for itself, and writes what it makes."""
    if _LAUNCH is None or _LAUNCH.apart:
        yield
        return
    _LAUNCH.apart = True
    try:
        yield
    finally:
        if _LAUNCH is not None:
            _LAUNCH.apart = False


def spread(
    pieces: Sequence[P],
    do: Callable[[P], R],
    tick: Callable[[int, R], None] = lambda done, result: None,
) -> Iterator[R]:
    """The results of pieces of work that do not depend on each other, in the pieces' order.

    To be read to its end. A piece is taken by the process that is free; in one process each is done
    when its result is asked for.

    Args:
        pieces: the same in all processes.
        do: makes a result of one. What is learned from it is what it returns or writes; what else
            it changes, it changes in one process alone.
        tick: told how many pieces are done, and the result of one.

    Raises:
        Exception: what `do` raised, of the first piece that failed.
        Lost: a process has ended.
    """
    launch = _LAUNCH
    if launch is None or launch.apart or launch.together:
        for done, piece in enumerate(pieces, 1):
            result = do(piece)
            tick(done, result)
            yield result
        return
    what = f"{len(pieces)} pieces, meeting {launch.meetings}"
    taken, finished = f"taken/{launch.meetings}", f"done/{launch.meetings}"
    made: dict[int, tuple[R | None, Exception | None]] = {}
    with launch._reachable():
        while (number := launch.store.add(taken, 1) - 1) < len(pieces):
            made[number] = found = _tried(lambda number=number: do(pieces[number]), launch)
            if found[1] is not None:
                launch.store.add(taken, len(pieces))  # nobody begins another
                break
            tick(launch.store.add(finished, 1), found[0])  # pyright: ignore[reportArgumentType]
    parts = launch.gather(what, made)
    every = {number: found for part in parts for number, found in part.items()}
    for number in range(len(pieces)):
        result, error = every[number]
        if error is not None:
            raise error
        yield result  # pyright: ignore[reportReturnType]


def first(do: Callable[[], R]) -> R:
    """What the first process makes of `do`, in all processes.

    Raises:
        Exception: what `do` raised there.
        Lost: a process has ended.
    """
    launch = _LAUNCH
    if launch is None or launch.apart:
        return do()
    made = _tried(do, launch) if launch.rank == 0 else (None, None)
    result, error = launch.gather(f"first, meeting {launch.meetings}", made)[0]
    if error is not None:
        raise error
    return result


def _tried(do: Callable[[], R], launch: Launch) -> tuple[R | None, Exception | None]:
    """What `do` makes, or raises, as it can travel."""
    try:
        with apart():
            return do(), None
    except Exception as error:
        with contextlib.suppress(Exception):
            if type(_unpacked(_packed(error))) is type(error):
                if not isinstance(error, UserError):
                    error.add_note(f"In process {launch.rank}:\n{traceback.format_exc()}")
                return None, error
        return None, RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def _packed(value: Any) -> bytes:
    """A value as bytes; tensors of a device know that they are."""
    import torch

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(packed: bytes) -> Any:
    """The value; tensors of a device are on this process's."""
    import torch

    def here(storage: Any, location: str) -> Any:
        return storage.cuda() if location.startswith("cuda") else storage

    return torch.load(io.BytesIO(packed), map_location=here, weights_only=False)
