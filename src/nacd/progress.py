"""One progress display for all stages: stage, step, rate, time left, loss; quiet when piped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class Tick(Protocol):
    """Told of every step: how many are done, and the loss (NaN: none)."""

    def __call__(self, done: int, loss: float) -> None:
        """Move the bar."""
        ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.0f}s each")


class Progress:
    """Bars on a terminal; elsewhere one line when a stage ends.

    Args:
        quiet: nothing at all.
    """

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet, highlight=False, emoji=False)

    def say(self, line: str) -> None:
        """A line for the user."""
        if self.console.is_terminal:  # between words; a long path is left whole
            self.console.print(line, markup=False, overflow="ignore", crop=False)
        else:
            self.console.print(line, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Tick]:
        """A stage of `total` steps, `done` of them already there."""
        began = time.perf_counter()
        last = float("nan")

        if self.console.is_terminal:
            bar = RichProgress(
                TextColumn("{task.description:<18}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[loss]}"),
                console=self.console,
                transient=False,
            )
            with bar:
                task = bar.add_task(name[:18], total=total, completed=done, loss="")

                def tick(done: int, loss: float) -> None:
                    bar.update(
                        task, completed=done, loss="" if loss != loss else f"loss {loss:.3f}"
                    )

                yield tick
            return

        def note(done: int, loss: float) -> None:
            nonlocal last
            last = loss

        yield note
        tail = "" if last != last else f", loss {last:.3f}"
        self.say(f"{name}: {total} steps, {time.perf_counter() - began:.0f} s{tail}")
