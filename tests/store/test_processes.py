"""Pieces of work over several processes: order, errors, files, and a process that is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nacd.errors import UserError
from nacd.store import processes
from nacd.store.files import write_text
from nacd.store.processes import Lost, first, spread, writes
from nacd.store.run import RunFolder
from together import together


def test_one_process_makes_a_piece_when_it_is_asked_for() -> None:
    made: list[int] = []
    results = spread([3, 4], lambda piece: made.append(piece) or 2 * piece)
    assert (next(results), made) == (6, [3])
    assert ([*results], made) == ([8], [3, 4])


def test_results_are_the_same_everywhere_in_the_order_of_the_pieces(tmp_path: Path) -> None:
    def work() -> Any:
        ticks: list[int] = []
        folder = RunFolder(tmp_path)

        def piece(number: int) -> tuple[torch.Tensor, int]:
            write_text(tmp_path / f"{number}.txt", "whoever makes it writes it")
            nested = [*spread([1, 2], lambda k: k * number)]  # within a piece: here alone
            return torch.full((2,), sum(nested)), processes.rank()

        made = [*spread(range(20), piece, lambda done, _: ticks.append(done))]
        write_text(tmp_path / "shared.txt", f"of process {processes.rank()}")
        kept = folder.once("kept", lambda: {"by": processes.rank()})
        told = first(lambda: (processes.rank(), writes()))
        return [int(t[0]) for t, _ in made], {who for _, who in made}, kept, told, ticks

    one, other = together(work)
    assert one[:4] == other[:4]
    assert one[0] == [3 * number for number in range(20)]
    assert one[1] <= {0, 1}
    assert one[2:4] == ({"by": 0}, (0, True))
    assert sorted(one[4] + other[4]) == [*range(1, 21)]
    assert len([*tmp_path.glob("[0-9]*.txt")]) == 20
    assert (tmp_path / "shared.txt").read_text() == "of process 0"


def test_an_error_in_a_piece_is_raised_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    def work() -> Any:
        def piece(number: int) -> int:
            if number == 2:
                raise UserError("row 7: too long")
            return number

        with pytest.raises(UserError, match="row 7: too long"):
            _ = [*spread(range(5), piece)]
        with pytest.raises(UserError, match="not empty and not a run folder"):
            RunFolder(tmp_path).open({"model": "m"})
        return [*spread([1], lambda one: one)]  # and the launch goes on

    assert together(work) == [[1], [1]]


def test_processes_at_different_places_are_told_apart() -> None:
    def work() -> Any:
        with pytest.raises(Lost, match=r"different ways \(2 pieces.*; 3 pieces"):
            _ = [*spread(range(2 + processes.rank()), lambda k: k)]

    assert together(work) == [None, None]


@pytest.mark.parametrize("dies", [0, 1])
def test_what_a_lost_process_has_not_made_is_made_again(
    dies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BEAT", 0.1)
    monkeypatch.setattr(processes, "LOST", 1.5)
    folder = RunFolder(tmp_path)

    def piece(number: int) -> dict[str, Any]:
        if processes.rank() == dies and processes.launched():
            os._exit(9)
        return folder.once(f"piece-{number}", lambda: {"square": number**2})

    found = together(lambda: [*spread(range(6), piece)])
    assert found[dies] is None
    lost = found[1 - dies]
    assert isinstance(lost, Lost)
    assert str(lost).startswith(f"process {dies} of 2 is gone")
    assert "the same command goes on" in str(lost)
    assert lost.speaks
    there = {file.name for file in tmp_path.glob("*.json")}
    assert len(there) >= 5 * dies
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert [*spread(range(6), piece)] == [{"square": number**2} for number in range(6)]
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_a_launcher_that_stops_the_others_is_not_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "BEAT", 0.2)

    def work(dies: bool) -> Any:
        if dies and processes.rank() == 1:
            os._exit(9)
        if processes.rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)

    lost, _ = together(lambda: work(dies=True))
    assert str(lost).startswith("process 1 of 2 is gone")
    stopped, _ = together(lambda: work(dies=False))
    assert str(stopped).startswith("stopped by its launcher")


def test_the_others_say_why_a_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BEAT", 0.1)

    def work() -> Any:
        if processes.rank() == 1:
            raise UserError("/data: no space left.")
        return [*spread(range(2), lambda k: k)]

    lost, error = together(work)
    assert isinstance(error, UserError)
    assert str(lost) == f"process 1 of 2 has ended: /data: no space left. {processes.KEPT}"
