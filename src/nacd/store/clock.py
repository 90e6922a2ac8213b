"""Seconds and peak memory by stage of a run, kept in its `stages.json`.

    clock = StageClock(folder / "stages.json", device)
    with clock.stage("learning"):
        ...

A run that goes on adds to what its folder holds: seconds are summed over the processes, a peak is
the highest of theirs. Memory is the process's peak resident set during the stage (Linux alone tells
it) and, on CUDA, the peak of the tensors on the device.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nacd.store.files import write_json
from nacd.store.memory import forget_peak, peak_resident


class StageClock:
    """Measures stages, and writes the file when one ends, however it ends.

    Attributes:
        stages: one entry a stage, in order of first appearance: `name`, `seconds`, `peak_bytes`
            and `device_peak_bytes` (None where unknown), `times` (how often it was entered).
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu"):
        """Go on with `file`, if it is there and can be read."""
        self.file = file
        self.device = torch.device(device)
        self.stages: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self.stages = list(json.loads(file.read_text(encoding="utf-8"))["stages"])

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside. Stages do not nest: they share the peak's counter."""
        on_device = self.device.type == "cuda"
        if on_device:
            torch.cuda.reset_peak_memory_stats(self.device)
        known = forget_peak()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(
                name,
                time.perf_counter() - began,
                peak_resident() if known else None,
                torch.cuda.max_memory_allocated(self.device) if on_device else None,
            )

    def _add(self, name: str, seconds: float, peak: int | None, device_peak: int | None) -> None:
        entry = next((stage for stage in self.stages if stage["name"] == name), None)
        if entry is None:
            entry = {
                "name": name,
                "seconds": 0.0,
                "peak_bytes": None,
                "device_peak_bytes": None,
                "times": 0,
            }
            self.stages.append(entry)
        entry["seconds"] += seconds
        entry["times"] += 1
        for key, value in (("peak_bytes", peak), ("device_peak_bytes", device_peak)):
            if value is not None:
                entry[key] = max(entry[key] or 0, value)
        write_json(self.file, {"device": str(self.device), "stages": self.stages})
