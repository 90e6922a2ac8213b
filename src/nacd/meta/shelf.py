"""The gradients that a sweep keeps of its inner steps, off the device where its memory is short.

N gradients of theta, and with `one-sided` as many in what is learned: 21 million numbers of LoRA
and 56 steps are 4.7 GB. Each is used a few times on the way back, between passes of the model, so
a card can leave them in the host's page-locked memory: copies there and back are queued on the
stream that computes, and what comes back is what went.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nacd.meta.engines import Slopes
from nacd.store.memory import free_memory

SHARE = 0.25
"""Share of a card's free memory that the gradients may take; activations take up to half."""


class Shelf:
    """Slopes of inner steps, first to last.

    Args:
        steps: how many will be put here.
        away: whether they are kept off the device; None: on a card whose memory is short.
    """

    def __init__(self, steps: int, away: bool | None = None):
        self.steps, self.away = steps, away
        self._kept: list[Slopes] = []

    def put(self, slopes: Slopes) -> None:
        """Keep those of the next step."""
        if self.away is None:
            self.away = short(slopes.theta.device, self.steps * _bytes(slopes))
        self._device = slopes.theta.device
        self._kept.append(_moved(slopes, None) if self.away else slopes)

    def __getitem__(self, i: int) -> Slopes:
        """Those of step i, on the device."""
        return _moved(self._kept[i], self._device) if self.away else self._kept[i]

    def pop(self) -> Slopes:
        """The last that is kept, on the device, and no longer here."""
        last = self[-1]
        self._kept.pop()
        return last


def short(device: torch.device, needed: int) -> bool:
    """Whether so many bytes are more than a sweep should hold on a device."""
    if device.type != "cuda":
        return False
    free = free_memory(device)
    return free is not None and needed > SHARE * free


def _bytes(slopes: Slopes) -> int:
    return sum(t.numel() * t.element_size() for t in (slopes.theta, *slopes.learnables))


def _moved(slopes: Slopes, device: torch.device | None) -> Slopes:
    """A copy on the device, or in the host's memory."""

    def copy(tensor: Tensor) -> Tensor:
        if device is not None:
            return tensor.to(device, non_blocking=True)
        pinned = tensor.device.type == "cuda"
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return host.copy_(tensor, non_blocking=True)

    return Slopes(slopes.value, copy(slopes.theta), tuple(map(copy, slopes.learnables)))
