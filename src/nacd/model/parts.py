"""A batch through a model part by part, in smaller parts where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from nacd.config import ModelConfig
from nacd.data.batches import Batch
from nacd.store.memory import OutOfMemory, is_out_of_memory

T = TypeVar("T")
MICRO_TOKENS = 384
"""Positions that go through a model on the CPU at once: enough for its cores, and rows packed into
one sequence cost the square of its length in attention."""
MICRO_TOKENS_DEVICE = 2048
"""The same elsewhere: fewer leave an accelerator idle."""
DOUBLE = 4
"""Memory of a double backward, in ordinary passes over the same rows (measured: 3.6 to 4.2)."""


class Parted(Protocol):
    """What there is to know of a model; see `nacd.model.functional.LoraModel`."""

    config: ModelConfig
    device: torch.device
    micro: int
    on_less: Callable[[int], None]
    packs: bool


def in_parts(model: Parted, batch: Batch, run: Callable[[list[Batch]], T], backward: int = 1) -> T:
    """What `run` makes of a batch's parts, which have at most `micro` positions each.

    Where memory runs out, `micro` is halved and `run` called again, with smaller parts.

    Args:
        model: the model that they pass through; its `micro` is lowered for good.
        batch: rows.
        run: takes the parts, in the rows' order; goes through them one at a time.
        backward: 0: `run` has no backward pass; 1: it has; 2: a double one, which needs more
            memory, so that its parts are smaller.

    Raises:
        OutOfMemory: a row alone does not fit.
    """
    share = DOUBLE if backward == 2 else 1
    while True:
        parts = batch.parts(max(1, model.micro // share), packed=model.packs)
        try:
            return run(parts)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        several = [part for part in parts if len(part.ids) > 1]
        if not several:
            others = ["", ", or --gradient-checkpointing", ", or --engine first-order"]
            other = "" if model.config.gradient_checkpointing else others[backward]
            raise OutOfMemory(
                f"memory ran out on a row of {batch.ids.shape[1]} tokens: give a smaller "
                f"--max-tokens{other}."
            )
        gc.collect()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(p.tokens if model.packs else p.ids.numel() for p in several)
        model.micro = max(1, min(model.micro, share * largest) // 2)
        model.on_less(model.micro)
