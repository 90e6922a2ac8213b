"""Peak memory of a piece of work in a process of its own, on top of what is there before it."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

import torch

from nacd.store.memory import forget_peak, peak_resident, resident


class PeakMemory:
    """Starts to count when it is made: on CUDA torch's own count, else the peak resident set."""

    def __init__(self, device: torch.device):
        gc.collect()
        self._cuda = device.type == "cuda"
        self._reset = False
        self._base: int | None = None
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            self._reset = forget_peak()
            self._base = resident()

    def read(self) -> dict[str, int | None]:
        """`peak`, and how much of it came `above` what was there at the start, in bytes."""
        if self._cuda:
            peak = torch.cuda.max_memory_allocated()
        else:
            known = peak_resident() if self._reset else None
            unit = 1 if sys.platform == "darwin" else 1024
            peak = known or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"peak": peak, "above": peak - self._base if self._base else None}
