"""Memory: what the process holds (as Linux tells it; elsewhere it is not known), what is free.

The free memory of a container is its own limit's, where that is lower than the machine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from nacd.errors import UserError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


class OutOfMemory(UserError):
    """The device's memory does not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a failed allocation, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    return min([psutil.virtual_memory().available, *_group_room()])


def _group_room() -> Iterator[int]:
    """What every control group with a limit that the process is in leaves, in bytes."""
    try:
        groups = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, kinds, path = group.split(":", 2)
        if kinds == "":  # version 2
            top, names = _MOUNT, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            top = _MOUNT / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(top):
                break
            try:
                limit = (folder / names[0]).read_text().strip()
                used = int((folder / names[1]).read_text())
                lines = (folder / "memory.stat").read_text().splitlines()
                stat = dict(line.split() for line in lines)
                if limit != "max":
                    yield int(limit) - used + int(stat.get(names[2], 0))
            except (OSError, ValueError):
                continue  # as a container sees it, a path may not be there


def resident() -> int | None:
    """Bytes resident now."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """Most bytes resident since the process began, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> bool:
    """Let the kernel count the peak anew; False where it does not."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return peak_resident() is not None


def _status(key: str) -> int | None:
    try:
        return 1024 * int(_STATUS.read_text().split(key + ":")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return None
