"""Several processes at one piece of Python, as a launcher starts them: forks of the test's own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import warnings
from collections.abc import Callable
from typing import Any

from nacd.store import processes


def together(do: Callable[[], Any], count: int = 2) -> list[Any]:
    """What `do` returns, or the error it raises, in each of so many processes; None: it died."""
    context = multiprocessing.get_context("fork")  # what is imported and loaded is there already
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int, answer: Any) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(port)
        try:
            processes.start()
            answer.send(pickle.dumps(do()))  # tensors by value
            processes.end()
        except BaseException as error:
            answer.send(pickle.dumps(error))
            processes.end(str(error))
        os._exit(0)

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    others = [context.Process(target=one, args=(k, pipes[k][1])) for k in range(count)]
    with warnings.catch_warnings():  # that a process with threads forks
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in others:
            process.start()
    found = []
    for (ours, theirs), process in zip(pipes, others, strict=True):
        theirs.close()
        try:
            found.append(pickle.loads(ours.recv()) if ours.poll(100) else None)
        except EOFError:
            found.append(None)
        process.join(20)
        process.kill()
    return found
