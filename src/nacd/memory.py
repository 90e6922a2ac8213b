"""The process's resident memory, as Linux tells it; elsewhere it is not known."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


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
