"""How many tokens go through a model at once, so that a training step fits in the memory.

A batch's loss is a sum over its rows, so its gradient is that of its parts, which have at most T
positions (`--micro-tokens`). A part of S positions, all of them labels, takes about

    2 (a S + b S^2)    what autograd keeps of the layers for the backward pass, counted on two short
                       rows; and as much again in holes between what is kept (with glibc, measured)
    + 3 S V            numbers: the logits, their softmax and their gradient, V the vocabulary

and T is the usual number, halved until that is at most half of the memory that is free. The choice
is kept in the run folder: a run that goes on has the same parts, and so the same bits, whatever is
free by then. Only where memory runs out in spite of it do parts become smaller on the way; that is
said and kept too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nacd.data.batches import collate
from nacd.data.example import Encoded
from nacd.model.lora import LoraModel
from nacd.store import processes
from nacd.store.files import read_json, write_json
from nacd.store.memory import OutOfMemory, free_memory
from nacd.terminal.units import byte_size

SHARE = 0.5
"""Share of the free memory that a part may take: the rest is other programs', and slack."""
LEAST = 32
"""Positions a part, below which halving stops: rows are seldom shorter."""
_PROBE = 16
"""Positions that memory is counted on, and twice and three times as many."""

Say = Callable[[str], None]


def part_bytes(model: LoraModel, *, training: bool = True) -> Callable[[int], float]:
    """Memory that a pass takes beside the model: positions of a part to bytes.

    Args:
        model: the model.
        training: whether there is a backward pass.
    """
    return needed_bytes(
        lambda positions: _kept(model, positions),
        vocabulary=model.hf.get_output_embeddings().weight.shape[0],
        entry=max(4, model.zero_theta().element_size()),
        layers=model.hf.config.get_text_config().num_hidden_layers,
        width=model.width,
        checkpointing=model.config.gradient_checkpointing,
        training=training,
    )


def needed_bytes(
    kept_of: Callable[[int], int],
    *,
    vocabulary: int,
    entry: int,
    layers: int,
    width: int,
    checkpointing: bool,
    training: bool = True,
) -> Callable[[int], float]:
    """The formula above: positions of a part to bytes.

    Args:
        kept_of: bytes that autograd keeps of 16, 32 or 48 positions.
        vocabulary: V, rows of the head.
        entry: bytes of a number of the logits.
        layers: of the model.
        width: of what goes into a layer.
        checkpointing: whether layers are run again in the backward pass.
        training: whether there is a backward pass.
    """
    once, twice, thrice = (kept_of(k * _PROBE) for k in (1, 2, 3))
    square = max(0.0, (thrice - 2 * twice + once) / (2 * _PROBE**2))
    linear = (twice - once) / _PROBE - 3 * square * _PROBE
    head = 3.0 * vocabulary * entry

    def needed(positions: int) -> float:
        kept = holes = linear * positions + square * positions**2
        if not training:  # one layer's at a time
            kept, holes = kept / layers, holes / layers
        elif checkpointing:  # and the input of each
            kept = kept / layers + 4.0 * layers * width * positions
        return kept + holes + head * positions

    return needed


def _kept(model: LoraModel, positions: int) -> int:
    """Bytes that autograd keeps of two rows of so many tokens together, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    lengths = (positions // 4, positions - positions // 4)
    rows = [Encoded((5,) * n, (False,) * (n - 1) + (True,), (0, 1)) for n in lengths]
    training = model.hf.training
    model.hf.eval()  # nothing is recomputed
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            graph = model.row_losses(collate(rows, 0))
            del graph
    finally:
        model.hf.train(training)
    return sum(seen.values())


def fitting(needed: Callable[[int], float], most: int, free: int | None) -> int:
    """The largest of `most`, `most` / 2, ... positions whose bytes are a share of the free ones."""
    if free is None:
        return most
    while most > LEAST and needed(most) > SHARE * free:
        most //= 2
    return most


def settle(
    model: LoraModel,
    longest: int,
    *,
    training: bool = True,
    kept: Path | None = None,
    say: Say = lambda line: None,
) -> None:
    """Decide how much goes through the model at once, by the memory that is free now.

    Args:
        model: the model; its `micro` is set, and its `on_less` keeps and says what becomes of it.
        longest: tokens of the longest row.
        training: whether the model will be trained.
        kept: JSON file of the run folder that holds the choice, if there is a run folder; what it
            holds for the model goes before what is free now, and --micro-tokens before both.
        say: takes lines for the user.

    Raises:
        OutOfMemory: the longest row alone does not fit.
    """
    name = model.config.model

    def keep(micro: int) -> None:
        if kept is not None:
            write_json(kept, _read(kept) | {name: micro})

    def less(micro: int) -> None:
        keep(micro)
        say(f"memory ran out; going on with --micro-tokens {micro} (the gradients are the same)")

    model.on_less = less
    if not model.packs:
        say(f"{name}: its attention cannot tell packed rows apart, so batches are padded.")
    before = None if kept is None else processes.first(lambda: _read(kept).get(name))

    def fits() -> int:
        if model.config.shard:  # what autograd keeps is counted with weights that do not stay
            return model.micro
        free, needed = free_memory(model.device), part_bytes(model, training=training)
        if free is not None and needed(longest) > free:
            other = " or --gradient-checkpointing,"
            raise OutOfMemory(
                f"a row of {longest} tokens takes about {byte_size(needed(longest))} of memory, "
                f"and {byte_size(free)} are free: give a smaller --max-tokens,"
                f"{other if training and not model.config.gradient_checkpointing else ''} or free "
                f"some memory (or give --micro-tokens {model.micro}, to try all the same)."
            )
        return fitting(needed, model.micro, free)

    model.micro = model.config.micro_tokens or before or processes.first(fits)
    if model.micro != before:
        keep(model.micro)


def _read(kept: Path) -> dict[str, int]:
    return read_json(kept) if kept.is_file() else {}
