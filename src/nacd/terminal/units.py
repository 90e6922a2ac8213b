"""Times, sizes and work for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`1.2 s`, `34 s`, `12 min`, `1.9 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def byte_size(size: float) -> str:
    """`512 bytes`, `4.88 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def operations(count: float) -> str:
    """Floating-point operations: `870 MFLOP`, `19.2 TFLOP`, `1.4 PFLOP`."""
    size = count / 1e6
    for unit in ("M", "G", "T"):
        if size < 999.5:
            return f"{size:.3g} {unit}FLOP"
        size /= 1000
    return f"{size:.3g} PFLOP"
