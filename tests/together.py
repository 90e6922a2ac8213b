"""Several processes at one piece of Python, as forks of the test's own: what is loaded is there."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nacd.store import processes


def forked(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each job returns, or the error it raises, in a process of its own; None: it died."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in jobs]

    def run(number: int) -> None:
        answer = pipes[number][1]
        try:
            answer.send(pickle.dumps(jobs[number]()))  # tensors by value
        except BaseException as error:
            answer.send(pickle.dumps(error))
        os._exit(0)

    started = [context.Process(target=run, args=(number,)) for number in range(len(jobs))]
    with warnings.catch_warnings():  # that a process with threads forks
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in started:
            process.start()
    found = []
    for (ours, theirs), process in zip(pipes, started, strict=True):
        theirs.close()
        try:
            found.append(pickle.loads(ours.recv()) if ours.poll(100) else None)
        except EOFError:
            found.append(None)
        process.join(20)
        process.kill()
    return found


def together(do: Callable[[], Any], count: int = 2) -> list[Any]:
    """The same of so many processes that a launcher has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> Any:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(port)
        try:
            processes.start()
            found = do()
            processes.end()
            return found
        except BaseException as error:
            processes.end("" if isinstance(error, processes.Lost) else str(error))
            raise

    return forked([partial(one, rank) for rank in range(count)])
