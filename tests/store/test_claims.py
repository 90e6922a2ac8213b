"""Jobs that share a folder: who has a piece of work, and what becomes of it when they are gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest

from nacd.errors import UserError
from nacd.store import claims
from nacd.store.claims import FOLDER, claim, claimed, turn
from nacd.store.run import RunFolder


def held(folder: Path, name: str, **changes: Any) -> Path:
    """A claim that another machine's process left."""
    file = folder / FOLDER / f"{name}-0"
    file.parent.mkdir(exist_ok=True)
    holder = {"machine": "elsewhere", "process": 7, "began": 1.0} | changes
    file.write_text(json.dumps(holder))
    return file


def test_a_piece_of_work_is_claimed_once_and_given_back(tmp_path: Path) -> None:
    mine = claim(tmp_path, "cells/m/5%/random/0")
    assert mine is not None
    assert claim(tmp_path, "cells/m/5%/random/0") is None
    assert not claimed(tmp_path, "cells/m/5%/random/0")  # by another
    other = claim(tmp_path, "cells/m/5%/random/1")
    assert other is not None
    for one in (mine, other):
        one.release()
    assert [*(tmp_path / FOLDER).iterdir()] == []


def test_a_claim_is_stale_when_nobody_touches_it(tmp_path: Path) -> None:
    file = held(tmp_path, "a")
    assert claim(tmp_path, "a") is None
    assert claimed(tmp_path, "a")
    long_ago = file.stat().st_mtime - 2 * claims.STALE
    os.utime(file, (long_ago, long_ago))
    assert not claimed(tmp_path, "a")
    mine = claim(tmp_path, "a")
    assert mine is not None
    assert mine.file.name == "a-1"
    assert [*(tmp_path / FOLDER).iterdir()] == [mine.file]


@pytest.mark.parametrize("process", [os.getpid(), 2**22 + 1], ids=["another", "none"])
def test_a_claim_is_stale_at_once_when_its_process_is_gone(process: int, tmp_path: Path) -> None:
    # the number may be another process's by now: this one began later
    held(tmp_path, "a", machine=socket.gethostname(), process=process)
    assert not claimed(tmp_path, "a")
    assert claim(tmp_path, "a") is not None


def test_of_several_that_take_a_stale_claim_over_one_succeeds(tmp_path: Path) -> None:
    held(tmp_path, "a", machine=socket.gethostname(), process=2**22 + 1)
    context = multiprocessing.get_context("fork")

    def take(gate: Any, answer: Any) -> None:
        gate.wait()
        answer.put(claim(tmp_path, "a") is not None)
        gate.wait()  # a claim ends with its process

    gate, answers = context.Barrier(6), context.Queue()
    jobs = [context.Process(target=take, args=(gate, answers)) for _ in range(6)]
    with warnings.catch_warnings():  # that a process with threads forks
        warnings.simplefilter("ignore", DeprecationWarning)
        for job in jobs:
            job.start()
    assert sorted(answers.get(timeout=20) for _ in jobs) == [False] * 5 + [True]
    for job in jobs:
        job.join(20)


def test_a_result_that_another_job_makes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.open({"model": "m"}, alone=False)
    file = held(tmp_path, "tuning")
    assert folder.taken("tuning")

    def other_job_ends(_: float) -> None:
        RunFolder(tmp_path).keep("tuning", {"rate": 1})
        file.unlink()

    monkeypatch.setattr(claims.time, "sleep", other_job_ends)
    assert folder.once("tuning", lambda: {"rate": 2}) == {"rate": 1}
    assert not folder.taken("tuning")


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"--out .*: cannot be written \(Permission denied\)"):
        claim(tmp_path, "a")


def test_a_turn_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), turn(tmp_path, "a"):
        raise ValueError("no")
    assert claim(tmp_path, "a") is not None
