"""`nacd plan`: what `nacd distill` would take, from the model's shapes alone.

The stages and their work are those of `nacd.costs.forecasts`; what it measures, a step's memory and
time, is worked out here of the `Outline`. Memory at the peak of learning, P the length of theta:

    weights          of the frozen model
    LoRA             12 P: theta, its copy in the model, Adam's moments, a gradient, the cotangents
                     of all three, and the next value of each
    the sweep        the inner steps' gradients, and (theta, m, v) at log2 of them (`sweep_bytes`)
    rows             the learnable vectors, their gradient and Adam's moments
    activations      of the positions that go through the model at once (`needed_bytes`), with the
                     logits; of a double backward `DOUBLE` times as much

A 16-bit format is proved before that, its matrices turned to float32 one at a time. On a card that
the sweep's gradients would take too much of, they are in the host's memory (`nacd.meta.shelf`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nacd.config import DataConfig, DistillConfig, decided
from nacd.config.commands import PlanConfig
from nacd.config.settings import check_values
from nacd.costs.costs import Forecast, Speed, Work, snapshot_bytes, sweep_bytes, vectors_kept
from nacd.costs.forecasts import CHECK, distillation
from nacd.data import Encoded
from nacd.distillation.learn import draw
from nacd.distillation.pool import window_of
from nacd.distillation.stages import CHECKED
from nacd.errors import UserError
from nacd.meta import likely
from nacd.meta.shelf import SHARE
from nacd.model.lora import DTYPES
from nacd.model.microbatch import fitting
from nacd.model.outline import Outline
from nacd.model.parts import DOUBLE
from nacd.model.prepare import Part, Prepared
from nacd.selection.method import forward_flops
from nacd.store.memory import free_memory
from nacd.terminal.units import byte_size, duration

THETAS = 12
"""Tensors of the size of LoRA at the peak of a sweep, beside those that it keeps."""
ORDINARY = 8
"""The same of an ordinary training step."""
TWICE = ("exact", "tesla")
"""Engines with a double backward pass."""
SURE = 0.9
"""Share of the memory up to which a plan is said to fit: the rest is the driver's, and slack."""


@dataclass(frozen=True)
class Plan:
    """What a run would take."""

    model: str
    parameters: int
    """Of the frozen model."""
    lora: int
    """P."""
    micro_tokens: int
    """Positions that go through the model at once."""
    parts: dict[str, float]
    """Bytes at the peak of learning, by part."""
    check: float
    """Bytes at the peak of the check of a 16-bit format; 0: there is none."""
    room: float | None
    """Bytes of the card, or free on this machine; None: not known."""
    mend: str
    """Flags with which it fits; empty: it fits as it is, or nothing here makes it fit."""
    forecast: Forecast
    """Stage by stage; seconds are ordinary training steps where no speed was named."""
    timed: bool
    """Whether they are seconds."""

    @property
    def memory(self) -> float:
        """Bytes at the highest peak."""
        return max(self.check, math.fsum(self.parts.values()))

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None: memory is not known."""
        return None if self.room is None else self.memory <= SURE * self.room

    def describe(self) -> str:
        """At 80 columns."""
        lines = [
            f"{Path(self.model).name}: {self.parameters / 1e6:,.0f} million parameters, LoRA "
            f"{self.lora / 1e6:,.1f} million",
            "",
            f"{'memory at the peak of learning, worked out':<63}{'':>11}".rstrip(),
            *(f"  {name:<61}{byte_size(size):>11}" for name, size in self.parts.items()),
            f"  {'in all':<61}{byte_size(math.fsum(self.parts.values())):>11}",
            *self._checked(),
            self._verdict(),
            "",
            f"{'stage':<42}{'time' if self.timed else 'steps':>10}{'memory':>11}{'disk':>11}",
        ]
        lines += self.forecast.lines(duration if self.timed else lambda steps: f"{steps:,.0f}")
        if not self.timed:
            lines += [
                "",
                "A step is an ordinary training step. --tflops turns steps into time; `nacd",
                "doctor` measures one on this machine.",
            ]
        return "\n".join(lines)

    def _checked(self) -> list[str]:
        if not self.check:
            return []
        return [
            f"  {'before it, the check in float32, one matrix at a time':<61}"
            f"{byte_size(self.check):>11}"
        ]

    def _verdict(self) -> str:
        if self.room is None:
            return "How much memory is free is not known here; name a card with --gpu-memory 24GB."
        if self.fits:
            return f"It fits into {byte_size(self.room)}."
        said = f"It does not fit into {byte_size(self.room)}"
        if self.memory <= self.room:
            said = f"It may not fit into {byte_size(self.room)}, of which a tenth is left to others"
        if self.mend:
            return f"{said}; it does with {self.mend}."
        return f"{said}, with no flag that is known here; take a smaller model or shorter rows."


def plan(config: PlanConfig) -> Plan:
    """What `nacd distill` would take of memory, time and disk, before anything is loaded.

    Raises:
        UserError: no such model, or a flag's value out of range.
    """
    check_values(config)
    config.recipe.check()
    for flag, value, least in (
        ("--rows", config.rows, 8),
        ("--tokens", config.tokens, 2),
        ("--max-tokens", config.max_tokens, config.tokens),
        ("--tflops", config.tflops, 0),
    ):
        if not least <= value < math.inf:
            raise UserError(f"{flag} {value}: must be at least {least}.")
    card = memory_of(config.gpu_memory) if config.gpu_memory else None
    room = card if card is not None else free_memory(torch.device("cpu"))
    found = as_it_is(config, room, card=card is not None)
    if found.fits is False:
        for other, flags in _mends(config, found.micro_tokens):
            if as_it_is(other, room, card=card is not None).fits:
                return replace(found, mend=flags)
    return found


def memory_of(text: str) -> float:
    """Bytes of `24GB`, `80 GiB` or `24`.

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"([0-9.]+)\s*(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if not match or not number:
        raise UserError(f"--gpu-memory {text}: no size; give 24GB, say.")
    power = "KMGT".index((match[2] or "G").upper()) + 1
    return number * (1024 if match[3] else 1000) ** power


def _mends(config: PlanConfig, micro: int) -> Iterator[tuple[PlanConfig, str]]:
    """Settings that take less memory, the least harmful first, with the flags that say so."""
    engine = likely(config.outer.engine, config.model.low) in TWICE
    ways: list[tuple[dict[str, Any], str]] = [({}, "")]
    if not config.model.micro_tokens:
        ways += [
            ({"micro_tokens": micro // 2**k}, f"--micro-tokens {micro // 2**k}") for k in (1, 2)
        ]
    checkpointing = ({"gradient_checkpointing": True}, "--gradient-checkpointing")
    small = ({"quantize": "4bit"}, "--quantize 4bit")
    if not config.model.gradient_checkpointing:
        ways.append(checkpointing)
    if config.model.dtype == "float32":  # a difference is wrong in 16 bits, and right of 4-bit ones
        ways.append(({"dtype": "bfloat16"}, "--dtype bfloat16"))
        if config.model.quantize == "none":
            ways.append(small)
            ways.append((checkpointing[0] | small[0], f"{small[1]} {checkpointing[1]}"))
    for fields, flags in ways:
        model = replace(config.model, **fields)
        twice = likely(config.outer.engine, model.low) in TWICE
        if flags and not (twice and model.gradient_checkpointing):
            yield replace(config, model=model), flags
    if engine:
        outer = replace(config.outer, engine="first-order")
        for fields, flags in ways if not config.model.low else ():
            other = replace(config, model=replace(config.model, **fields), outer=outer)
            yield other, f"--engine first-order {flags}".strip()


def as_it_is(config: PlanConfig, room: float | None, *, card: bool) -> Plan:
    """`plan` without a look for flags that mend it.

    Args:
        config: what is planned.
        room: bytes that there are; None: not known.
        card: whether they are a card's.
    """
    outline = Outline(config.model, card=card)
    run = DistillConfig(
        budget=config.budget,
        model=config.model,
        data=DataConfig(data="planned", max_tokens=config.max_tokens),
        recipe=config.recipe,
        outer=config.outer,
    )
    run = replace(run, outer=decided(run.outer, run.data))
    run.check()
    prepared = _prepared(config, outline, run.data.target_rows)
    rows = len(draw(prepared.train, config.size, 0))
    config.recipe.check_rows(rows)
    _, window = window_of(run.outer, config.recipe, rows)
    free = None if room is None else max(0.0, room - outline.weights)
    micro = config.model.micro_tokens or fitting(
        outline.needed, outline.usual, None if free is None else int(free)
    )
    theta = snapshot_bytes(outline, 1)  # pyright: ignore[reportArgumentType]
    vectors = 4.0 * rows * config.tokens * outline.width
    batch = min(config.recipe.batch_size, rows) * config.tokens
    engine = likely(config.outer.engine, config.model.low)
    own = vectors_kept(engine, batch, outline.width)
    swept = (window - 1) * (theta + own)
    states = sweep_bytes(outline, window, vectors=own) - swept  # pyright: ignore[reportArgumentType]
    together = max(config.max_tokens, min(micro, batch))
    working = outline.needed(together)
    if engine in TWICE:
        apart = max(config.max_tokens, min(micro // DOUBLE, batch))
        working = max(working, DOUBLE * outline.needed(apart))
    if config.model.quantize == "4bit":  # a matrix that is multiplied with
        working += outline.largest * DTYPES[config.model.dtype].itemsize
    there = f"the sweep over {window} inner steps"
    if card and free is not None and swept > SHARE * free:
        there, swept = f"{there}, gradients in the host's memory", 0
    kind = "4 bit" if config.model.quantize == "4bit" else config.model.dtype
    parts = {
        f"weights, {kind}": outline.weights,
        "LoRA, its optimiser and its cotangents": THETAS * theta,
        there: states + swept,
        f"vectors of {rows} rows, with their optimiser": 4 * vectors,
        f"activations of {together} positions, and logits": working,
    }
    learning = math.fsum(parts.values())
    check = 0.0
    if config.model.low:
        wide = Outline(replace(config.model, dtype="float32"), card=card)
        rows_of_it = max(config.max_tokens, min(micro, CHECKED * config.tokens))
        check = outline.weights + 4 * outline.largest + THETAS * theta + wide.needed(rows_of_it)
    speed, timed = _speed(config, outline, batch, together, theta)
    work = Work(prepared, config.recipe, rows, speed.forward)
    an_outer = speed.step * work.learning(run.outer) / max(1, run.outer.outer_steps)
    forecast = distillation(run, prepared, speed, outer=(an_outer, round(learning)))
    stages = tuple(
        replace(stage, memory=round(check)) if check and stage.name == CHECK else stage
        for stage in forecast.stages
    )
    return Plan(
        config.model.model,
        outline.parameters,
        outline.size,
        micro,
        parts,
        check,
        room,
        "",
        Forecast(stages),
        timed,
    )


def _speed(
    config: PlanConfig, outline: Outline, batch: int, together: int, theta: float
) -> tuple[Speed, bool]:
    """A step's time a token (without --tflops: in steps) and memory, and whether it is time."""
    step = 1 / batch
    passes = 3 if config.model.gradient_checkpointing else 2
    if config.tflops:
        step = passes * forward_flops(outline, 1) / (1e12 * config.tflops)  # pyright: ignore[reportArgumentType]
    fixed = outline.weights + ORDINARY * theta
    return (
        Speed(
            step,
            1 / passes,
            round(fixed + outline.needed(together)),
            round(fixed + outline.needed(together, training=False)),
        ),
        bool(config.tflops),
    )


def _prepared(config: PlanConfig, outline: Outline, target: int) -> Prepared:
    """Rows of the mean length, in the parts that a file of so many is split into."""
    row = Encoded((0,) * config.tokens, (True,) * config.tokens, (0, 0))
    target = min(target, config.rows // 5)
    sizes = {
        "target": target,
        "development": min(200, round(0.1 * config.rows)),
        "report": min(400, round(0.2 * config.rows)),
    }
    sizes["train"] = config.rows - sum(sizes.values())
    model: Any = outline
    template: Any = None
    return Prepared(
        model, template, **{name: Part((), (row,) * count) for name, count in sizes.items()}
    )
