"""One progress display for all stages: stage, step, rate, time left, loss; quiet when piped.

Once a forecast is known (`expect`), the time spent so far is shown beside it.
"""

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

from nacd.terminal.units import duration

EVERY = 300.0
"""Seconds between two lines of one stage where there is no terminal."""


SOON = 10.0
"""Seconds below which nobody asks how far a run is."""


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
    """Bars on a terminal; elsewhere a line when a stage ends, and every few minutes of a long one.

    Args:
        quiet: nothing at all.
        asks: whether a long run may ask on a terminal before it begins.
    """

    def __init__(self, quiet: bool = False, asks: bool = False):
        self.quiet, self.asks = quiet, asks
        self._expected, self._began = 0.0, time.perf_counter()
        self.console = Console(stderr=True, quiet=quiet, highlight=False, emoji=False)

    def say(self, line: str) -> None:
        """A line for the user."""
        if self.console.is_terminal:  # between words; a long path is left whole
            self.console.print(line, markup=False, overflow="ignore", crop=False)
        else:
            self.console.print(line, markup=False, soft_wrap=True)

    def expect(self, seconds: float) -> None:
        """From now on a run of so many seconds is under way."""
        self._expected, self._began = seconds, time.perf_counter()

    def so_far(self) -> str:
        """`2 min of about 10 min`; empty before a forecast is known, and in a short run."""
        if self._expected < SOON:
            return ""
        return f"{duration(time.perf_counter() - self._began)} of about {duration(self._expected)}"

    def end(self) -> None:
        """Say what the forecast has come to; nothing where there was none, or in a short run."""
        spent = time.perf_counter() - self._began
        if self._expected and max(self._expected, spent) >= SOON:
            self.say(f"forecast {duration(self._expected)}, spent {duration(spent)}")

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
                if so_far := self.so_far():
                    self.say(f"so far: {so_far}")
                task = bar.add_task(name[:18], total=total, completed=done, loss="")

                def tick(done: int, loss: float) -> None:
                    bar.update(
                        task, completed=done, loss="" if loss != loss else f"loss {loss:.3f}"
                    )

                yield tick
            return

        told = began

        def note(done: int, loss: float) -> None:
            nonlocal last, told
            last = loss
            if done < total and time.perf_counter() - told > EVERY:
                told = time.perf_counter()
                so_far = self.so_far() or f"{duration(told - began)} so far"
                self.say(f"{name}: {done} of {total} steps ({so_far})")

        yield note
        tail = "" if last != last else f", loss {last:.3f}"
        tail += f" ({so_far})" if (so_far := self.so_far()) else ""
        self.say(f"{name}: {total} steps, {time.perf_counter() - began:.0f} s{tail}")
