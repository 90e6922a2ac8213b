"""What a meta-gradient costs and how exact it is, engine by engine, in one run.

    python benchmarks/metagradient.py                       # over an hour on two cores
    python benchmarks/metagradient.py --steps 1 2 --long-steps --repeats 2

Every measurement is written as it is taken: stopped, the same command goes on. A timing during
which other programs took more than a twentieth of the machine is thrown away and taken again.
Every figure is a ratio to one ordinary LoRA training step (loss, gradient, update) on the same
batch: time per inner step with the forward sweep inside (median over interleaved repeats, the
ordinary step timed anew beside each), and peak memory. The objective is the trajectory one, which
costs nothing. The start has trained for a few steps, so that B is not 0 and AdamW's state is warm;
half of every row's tokens are learnable, the other half are labels.

Memory is measured in a fresh process each: on Linux the peak resident set (VmHWM, reset once the
model is loaded), on CUDA torch's own count. `peak` holds the model and Python's libraries too;
`above` is what the work adds to those alone. The error is the relative error of dL/dP against the
unrolled graph where that was run, else against `exact`.

A second table holds rows packed into one sequence against the same rows padded, in batches of rows
as long as those of two data sets (`--lengths`), timed one after the other, batch by batch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import tyro
from peak import PeakMemory
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data import Batch, Encoded, collate, mmlu_exemplars
from nacd.errors import UserError
from nacd.meta import (
    InnerLoop,
    MetaGradient,
    Start,
    initial_state,
    make_engine,
    meta_gradient,
    step,
    unrolled_meta_gradient,
)
from nacd.meta.objectives import matching, trajectory_objective
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.store.files import read_tensors, write_tensors

Name = Literal["unrolled", "exact", "first-order", "one-sided", "tesla"]
FLAT: tuple[Name, ...] = ("first-order", "one-sided")
REACH = {"first-order": 3.5, "one-sided": 2.3}
WARM = 4
EXPERT = 4
TOTAL = 64
"""Steps over which the learning rate falls: N may be up to TOTAL - WARM."""
PAUSE = 5.0
"""Seconds before another try where they took more."""
# fmt: off
LENGTHS = {
    "arc-easy": (
        (14, 4), (16, 5), (46, 9), (30, 3), (18, 14), (15, 5), (13, 2), (16, 7),
        (23, 3), (42, 3), (25, 4), (25, 10), (45, 2), (36, 2), (16, 2), (27, 9),
        (17, 2), (34, 9), (19, 2), (29, 2), (21, 3), (52, 10), (15, 8), (23, 2),
        (24, 3), (24, 4), (15, 7), (11, 6), (12, 13), (42, 9), (66, 13), (37, 3),
    ),
    "dolly": (
        (40, 18), (47, 23), (41, 234), (106, 23), (71, 51), (47, 16), (36, 9), (50, 33),
        (35, 63), (57, 139), (53, 57), (42, 93), (143, 71), (37, 117), (38, 18), (36, 107),
        (45, 15), (41, 137), (42, 24), (76, 41), (35, 52), (180, 144), (35, 43), (59, 31),
        (49, 53), (67, 39), (39, 35), (39, 14), (36, 59), (51, 185), (47, 381), (69, 96),
    ),
}
# fmt: on
"""Tokens of prompt and response of 32 rows, in no order: every 32nd of ARC-Easy (as questions with
their answers) and of Dolly 15k (up to 512 tokens) by length, in SmolLM2's tokens."""
TOGETHER = 8
"""Rows a batch of those."""


@dataclass(frozen=True)
class Config:
    """Meta-gradient benchmark."""

    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    engines: tuple[Name, ...] = ("unrolled", "exact", "first-order", "one-sided", "tesla")
    """Which engines are run."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Inner steps N, for every engine."""
    long_steps: tuple[int, ...] = (8, 32)
    """Inner steps N, for the two engines whose memory is one ordinary step's."""
    repeats: int = 5
    """Interleaved timings, of which the median is shown."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The inner loop's optimiser."""
    learning_rate: float = 0.0
    """Peak learning rate; 0: 1e-3 for AdamW, 0.3 for SGD."""
    eps: float = 1e-2
    """Step length of the two first-order engines, as a share of |theta|."""
    rows: int = 8
    """Rows a batch."""
    tokens: int = 64
    """Tokens a row."""
    pool: int = 4
    """Distinct batches; a longer inner loop visits them again."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    lora_rank: int = 8
    lengths: tuple[Literal["arc-easy", "dolly"], ...] = ("arc-easy", "dolly")
    """Data sets whose rows' lengths packed and padded batches are compared on."""
    gradient_checkpointing: bool = False
    """For the two first-order engines and the ordinary step alone."""
    quiet_share: float = 0.05
    """Share of the machine that other programs may take; above, a timing is taken again."""
    memory: bool = True
    """Whether peak memory is measured (one fresh process for each engine and N)."""
    out: Path = Path("runs/metagradient")
    """Folder for the measurements, the gradients and the table."""


@dataclass(frozen=True)
class Timing:
    """How long something took, and the share of the machine that other programs had meanwhile."""

    seconds: float
    others: float


class Setting:
    """The model, the batches, a trained start and an expert's goal."""

    def __init__(self, config: Config, folder: Path, checkpointing: bool):
        self.config = config
        self.model = load_model(
            ModelConfig(
                model=config.model,
                dtype=config.dtype,
                attention=config.attention,
                device=config.device,
                lora_rank=config.lora_rank,
                gradient_checkpointing=checkpointing,
            )
        )
        rate = config.learning_rate or {"adamw": 1e-3, "sgd": 0.3}[config.optimizer]
        self.recipe = Recipe(optimizer=config.optimizer, learning_rate=rate)
        self.loop = InnerLoop(self.model, self.recipe, TOTAL)
        self.log_rate = torch.tensor(math.log(rate), device=self.model.device)
        pool = [*range(config.pool)]
        self.batches = [_batch(self.model, config, i) for i in pool]
        self.vectors = torch.cat([self.model.embed(b.ids[b.slots >= 0]) for b in self.batches])
        self.vectors = self.vectors.float() if self.vectors.dtype.itemsize < 4 else self.vectors
        saved = folder / "start.safetensors"
        if not saved.is_file():
            self._train(saved)
        tensors, _ = read_tensors(saved)
        moved = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        state = tuple(moved[f"state{i}"] for i in range(len(moved) - 2))
        self.start = Start(moved["theta"], state, WARM)
        self.goal = moved["goal"]

    def _train(self, saved: Path) -> None:
        """The start: a few steps on the batches; the goal: a few more, on other rows."""
        theta = self.model.fresh_theta(0)
        start = Start(theta, initial_state(self.recipe, theta))
        own = [self.batches[i % len(self.batches)] for i in range(WARM)]
        start, _ = self.loop.run(start, own, self.log_rate, self.vectors)
        other = [_batch(self.model, self.config, self.config.pool + i) for i in range(EXPERT)]
        goal, _ = self.loop.run(start, other, self.log_rate, None)
        state = {f"state{i}": s for i, s in enumerate(start.state)}
        write_tensors(saved, {"theta": start.theta, "goal": goal.theta} | state)

    def ordinary(self, batch: Batch | None = None) -> Timing:
        """One ordinary training step."""
        began = self._now()
        _, gradient, _ = self.model.value_and_grad(self.start.theta, batch or self.batches[0])
        rate = self.loop.rate(self.log_rate, WARM)
        step(self.recipe, self.start.theta, self.start.state, gradient, rate, WARM)
        return self._since(began)

    def evaluation(self, batch: Batch) -> Timing:
        """Rows' losses, without gradients."""
        began = self._now()
        self.model.row_nll(self.start.theta, batch)
        return self._since(began)

    def meta(self, name: Name, steps: int) -> tuple[Timing, MetaGradient]:
        """One meta-gradient through `steps` inner steps, and its timing."""
        batches = [self.batches[i % len(self.batches)] for i in range(steps)]
        return self.through(name, batches, self.vectors)

    def through(
        self, name: Name, batches: Sequence[Batch], vectors: Tensor
    ) -> tuple[Timing, MetaGradient]:
        """One meta-gradient through a step on each of the batches, and its timing."""
        common = (self.loop, self.start, batches, self.log_rate, vectors)
        began = self._now()
        if name == "unrolled":

            def graph(theta: Tensor) -> Tensor:
                return matching(theta, self.start.theta, self.goal)

            result = unrolled_meta_gradient(*common, graph)
        else:
            objective = trajectory_objective(self.start.theta, self.goal)
            result = meta_gradient(*common, objective, make_engine(name, self.config.eps))
        return self._since(began), result

    def _now(self) -> tuple[float, float]:
        """Seconds on the clock, and CPU seconds of all other programs so far."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.model.device.type == "mps":
            torch.mps.synchronize()
        machine, own = psutil.cpu_times(), time.process_time()
        working = machine.user + machine.system + getattr(machine, "nice", 0.0)
        return time.perf_counter(), working - own

    def _since(self, began: tuple[float, float]) -> Timing:
        now = self._now()
        seconds = now[0] - began[0]
        return Timing(seconds, (now[1] - began[1]) / seconds / (os.cpu_count() or 1))


def _batch(model: LoraModel, config: Config, number: int) -> Batch:
    """Rows of running text: the first half of each learnable, the second half labels."""
    text = "\n\n".join(f"{e.prompt}\n{e.response}" for e in mmlu_exemplars("rationale"))
    size = config.rows * config.tokens
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < (number + 1) * size:
        raise UserError(f"--pool {config.pool} --tokens {config.tokens}: the text is too short.")
    rows = torch.tensor(ids[number * size : (number + 1) * size]).view(config.rows, config.tokens)
    half = config.tokens // 2
    response = torch.zeros_like(rows, dtype=torch.bool)
    response[:, half:] = True
    slots = torch.full_like(rows, -1)
    slots[:, :half] = torch.arange(config.rows * half).view(config.rows, half)
    slots[:, :half] += number * config.rows * half
    return Batch(rows, torch.ones_like(rows), response, slots).to(model.device)


# --- memory: one fresh process for each engine and N ------------------------------------------


def _child(config: Config, folder: Path, name: str, steps: int) -> None:
    """Run one engine once; print the memory it took as a JSON line, keep its gradient."""
    checkpointing = config.gradient_checkpointing and name in (*FLAT, "ordinary")
    setting = Setting(config, folder, checkpointing)
    memory = PeakMemory(setting.model.device)
    kept: dict[str, Tensor] = {}
    if name == "ordinary":
        setting.ordinary()
        setting.ordinary()
    else:
        _, result = setting.meta(name, steps)  # pyright: ignore[reportArgumentType]
        kept = {"vectors": result.vectors, "log_rate": result.log_rate}
    found = memory.read()
    if kept:
        write_tensors(folder / f"{name}-{steps}.safetensors", kept)
    print(json.dumps(found))


def _measure(config: Config, folder: Path, name: str, steps: int) -> dict[str, Any]:
    """Peak memory of one engine, in a process of its own; {} where it failed."""
    plan = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(config).items()
    }
    command = [sys.executable, __file__, "--child", json.dumps(plan), str(folder), name, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["killed: out of memory?"]
        print(f"{name}, N = {steps}: failed in its own process ({why[0][:200]})", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


# --- the run ----------------------------------------------------------------------------------


class Kept:
    """The measurements taken so far, one JSON line each.

    Raises `UserError` where the folder holds measurements of another setting.
    """

    def __init__(self, config: Config):
        self.path = config.out / "measurements.jsonl"
        config.out.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text() if self.path.is_file() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole]
        self.path.write_text("".join(whole))
        free = ("engines", "steps", "long_steps", "repeats", "memory", "quiet_share", "out")
        free += ("lengths",)
        setting = {k: v for k, v in asdict(config).items() if k not in free}
        if not self.lines:
            self.add({"setting": setting})
        before = self.lines[0]["setting"]
        differing = [key for key in setting if setting[key] != before.get(key)]
        if differing:
            raise UserError(
                f"{config.out} holds measurements with another {', '.join(differing)}. "
                "Name another folder with --out."
            )

    def add(self, line: dict[str, Any]) -> None:
        """Keep one measurement."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def find(
        self, kind: str, engine: str, steps: int, lengths: str | None = None
    ) -> list[dict[str, Any]]:
        """The measurements of one kind of one engine and N."""
        own = {"kind": kind, "engine": engine, "N": steps}
        own |= {} if lengths is None else {"lengths": lengths}
        return [line for line in self.lines if own.items() <= line.items()]


def plan(config: Config) -> list[tuple[Name, int]]:
    """Every engine and N that is run."""
    pairs: list[tuple[Name, int]] = []
    for engine in config.engines:
        more = config.long_steps if engine in FLAT else ()
        for steps in (*config.steps, *more):
            pairs.append((engine, steps))
    return sorted(pairs, key=lambda pair: (config.engines.index(pair[0]), pair[1]))


def run(config: Config) -> list[dict[str, Any]]:
    """Measure what is not yet measured, print the table; its rows."""
    pairs = plan(config)
    if any(not 1 <= steps <= TOTAL - WARM for _, steps in pairs):
        raise UserError(f"--steps, --long-steps: N lies between 1 and {TOTAL - WARM}.")
    kept = Kept(config)
    setting = Setting(config, config.out, checkpointing=False)
    measured: list[tuple[str, int]] = [("ordinary", 1)] if config.memory else []
    measured += pairs if config.memory else []
    for engine, steps in measured:
        if not kept.find("memory", engine, steps):
            _progress(f"memory: {engine}, N = {steps}")
            found = _measure(config, config.out, engine, steps)
            if found:
                kept.add({"kind": "memory", "engine": engine, "N": steps} | found)
    gradients = _gradients(setting, config.out, pairs)
    checkpointed = Setting(config, config.out, True) if config.gradient_checkpointing else setting
    _time(config, kept, setting, checkpointed, pairs)
    _progress("")
    (base,) = kept.find("memory", "ordinary", 1) or [{}]
    rows = []
    for pair in pairs:
        (used,) = kept.find("memory", *pair) or [{}]
        times = [line["ratio"] for line in kept.find("time", *pair)]
        row = {"engine": pair[0], "N": pair[1], "times": times}
        row["time"] = statistics.median(times) if times else None
        row["peak_bytes"], row["above_bytes"] = used.get("peak"), used.get("above")
        row["peak"] = _ratio(used.get("peak"), base.get("peak"))
        row["above"] = _ratio(used.get("above"), base.get("above"))
        rows.append(row | gradients[pair])
    ordinary = [line["ordinary"] for line in kept.lines if line.get("kind") == "time"]
    counts = [len(row["times"]) for row in rows]
    head = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "repeats": min(counts, default=0),
        "others": max((x["others"] for x in kept.lines if x.get("kind") == "time"), default=0.0),
        "device": str(setting.model.device),
        "torch": torch.__version__,
        "ordinary_seconds": statistics.median(ordinary) if ordinary else None,
        "ordinary_peak_bytes": base.get("peak"),
        "ordinary_above_bytes": base.get("above"),
    }
    result = config.out / "table.jsonl"
    result.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))
    print(table(head, rows))
    for name in config.lengths:
        print(packing(config, kept, setting, name))
    print(f"written: {result}")
    return rows


def _time(
    config: Config,
    kept: Kept,
    setting: Setting,
    checkpointed: Setting,
    pairs: list[tuple[Name, int]],
) -> None:
    """Time every engine `repeats` times, interleaved, between two ordinary steps each."""
    checkpointed.ordinary()
    before: Timing | None = None
    for repeat in range(config.repeats):
        for pair in pairs:
            while len(kept.find("time", *pair)) <= repeat:
                _progress(f"time {repeat + 1} of {config.repeats}: {pair[0]}, N = {pair[1]}")
                before = before or checkpointed.ordinary()
                chosen = checkpointed if pair[0] in FLAT else setting
                timing, _ = chosen.meta(*pair)
                after = checkpointed.ordinary()
                others = max(before.others, timing.others, after.others)
                ordinary = (before.seconds + after.seconds) / 2
                before = after
                if others > config.quiet_share:
                    _progress(f"other programs took {others:.0%} of the machine: timed again")
                    time.sleep(PAUSE)
                    before = None
                    continue
                line = {"kind": "time", "engine": pair[0], "N": pair[1], "others": others}
                ratio = timing.seconds / pair[1] / ordinary
                kept.add(line | {"ratio": ratio, "ordinary": ordinary})


# --- packed against padded --------------------------------------------------------------------


class Padded(Batch):
    """A batch of which all positions pass through the model, as many rows at once as fit."""

    def parts(self, most: int, *, packed: bool) -> list[Batch]:
        count = max(1, most // self.ids.shape[1])
        tensors = (self.ids, self.attention, self.response, self.slots)
        return [
            Batch(*(tensor[start : start + count] for tensor in tensors))
            for start in range(0, len(self.ids), count)
        ]


def _real_batches(model: LoraModel, name: str) -> list[Batch]:
    """Rows of running text, as long as a data set's; every prompt learnable."""
    text = "\n\n".join(f"{e.prompt}\n{e.response}" for e in mmlu_exemplars("rationale"))
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rows, slots, start, count = [], [], 0, 0
    for prompt, response in LENGTHS[name]:
        own = tuple(ids[start : start + prompt + response])
        rows.append(Encoded(own, (False,) * prompt + (True,) * response, (0, prompt)))
        slots.append([*range(count, count + prompt), *[-1] * response])
        start, count = start + prompt + response, count + prompt
    spans = [slice(i, i + TOGETHER) for i in range(0, len(rows), TOGETHER)]
    return [collate(rows[span], model.tokenizer.pad_token_id, slots[span]) for span in spans]


def packing(config: Config, kept: Kept, setting: Setting, name: str) -> str:
    """Time every work on the packed and on the padded batches; the table of ratios."""
    model = setting.model
    if not model.packs:
        return f"\n{config.model}: its attention cannot tell packed rows apart."
    batches = _real_batches(model, name)
    vectors = torch.cat([model.embed(b.ids[b.slots >= 0]) for b in batches]).float()
    works: dict[str, Callable[[Batch], Timing]] = {
        "step": setting.ordinary,
        "evaluation": setting.evaluation,
    }
    for engine in config.engines:
        if engine != "unrolled":
            works[engine] = lambda b, e=engine: setting.through(e, [b], vectors)[0]
    setting.ordinary(batches[0])
    lines = []
    for work, run in works.items():
        while len(done := kept.find("packing", work, len(batches), name)) < config.repeats:
            _progress(f"packed and padded, {name}: {work} {len(done) + 1} of {config.repeats}")
            packed, padded = [], []
            for batch in batches:
                packed.append(run(batch))
                model.packs = False
                padded.append(run(Padded(**vars(batch))))
                model.packs = True
            others = max(timing.others for timing in (*packed, *padded))
            if others > config.quiet_share:
                _progress(f"other programs took {others:.0%} of the machine: timed again")
                time.sleep(PAUSE)
                continue
            ratio = sum(t.seconds for t in packed) / sum(t.seconds for t in padded)
            line = {"kind": "packing", "engine": work, "N": len(batches), "lengths": name}
            kept.add(line | {"ratio": ratio, "others": others})
        times = [line["ratio"] for line in done]
        busy = max(line["others"] for line in done)
        lines.append(f"{work:12}{statistics.median(times):8.2f}x{busy:10.0%}")
    _progress("")
    share = sum(b.tokens for b in batches) / sum(b.ids.numel() for b in batches)
    head = [
        "",
        f"{len(batches)} batches of {TOGETHER} rows as long as {name}'s: {share:.0%} of the "
        "positions are tokens",
        f"{'':12}{'packed':>9}{'others':>10}",
        "-" * 31,
    ]
    return "\n".join([*head, *lines])


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _gradients(
    setting: Setting, folder: Path, pairs: list[tuple[Name, int]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Each one's relative error and cosine in dL/dP, and relative error in dL/dlog alpha."""
    found: dict[tuple[str, int], dict[str, Tensor]] = {}

    def gradient(name: Name, steps: int) -> dict[str, Tensor]:
        kept = folder / f"{name}-{steps}.safetensors"
        if kept.is_file():
            return read_tensors(kept)[0]
        _progress(f"gradient: {name}, N = {steps}")
        _, result = setting.meta(name, steps)
        write_tensors(kept, {"vectors": result.vectors, "log_rate": result.log_rate})
        return read_tensors(kept)[0]

    rows = {}
    for pair in pairs:
        steps = pair[1]
        against = ("unrolled", steps) if ("unrolled", steps) in pairs else ("exact", steps)
        for key in (against, pair):
            if key not in found:
                found[key] = gradient(*key)  # pyright: ignore[reportArgumentType]
        if pair == against:
            rows[pair] = {"reference": None}
            continue
        a, b = (found[key]["vectors"].double() for key in (pair, against))
        rate, true_rate = (found[key]["log_rate"].double() for key in (pair, against))
        rows[pair] = {
            "reference": against[0],
            "error": float((a - b).norm() / b.norm()),
            "cosine": float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)),
            "rate_error": float((rate - true_rate).abs() / true_rate.abs()),
        }
    return rows


def table(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table, 80 columns wide."""
    config = head["config"]
    gib = 2**30
    lines = [
        f"{Path(config['model']).name}, {config['optimizer']}, "
        f"{config['rows']} x {config['tokens']} tokens, "
        f"{config['dtype']}, {config['attention']}, {head['device']}",
        f"{head['threads']} threads, other programs at most {head['others']:.0%} of the machine, "
        f"median of {head['repeats']}",
    ]
    if head["ordinary_seconds"]:
        lines.append(f"one ordinary LoRA step: {head['ordinary_seconds']:.3f} s")
    if head["ordinary_peak_bytes"]:
        lines[-1] += f", peak {head['ordinary_peak_bytes'] / gib:.2f} GiB"
    if head["ordinary_above_bytes"]:
        lines[-1] += f", {head['ordinary_above_bytes'] / gib:.2f} of it above the model"
    lines += [
        "",
        f"{'engine':12}{'N':>4}{'time/step':>11}{'peak':>8}{'above':>8}{'error':>11}{'cosine':>10}"
        f"{'rate error':>12}",
        "-" * 77,
    ]
    for row in rows:
        cells = [f"{row['engine']:12}{row['N']:4d}"]
        cells += [f"{row['time']:10.2f}x" if row["time"] else f"{'-':>11}"]
        cells += [f"{row[k]:7.2f}x" if row[k] else f"{'-':>8}" for k in ("peak", "above")]
        if row["reference"] is None:
            cells += [f"{'reference':>11}"]
        else:
            cells += [f"{row['error']:11.1e}{row['cosine']:10.6f}{row['rate_error']:12.1e}"]
        lines.append("".join(cells))
    return "\n".join([*lines, "", *_verdicts(rows)])


def _verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What was to be reached, and what was."""
    lines = []
    for name in FLAT:
        own = [row for row in rows if row["engine"] == name]
        times = [row["time"] for row in own if row["time"]]
        if times:
            lines.append(f"{name}: at most {max(times):.2f}x the time (to reach: {REACH[name]}x)")
        peaks = [row["peak"] for row in own if row["peak"]]
        if peaks:
            lines.append(
                f"{name}: at most {max(peaks):.2f}x the memory (to reach: 1.3x), "
                f"spread over N {max(peaks) / min(peaks):.2f}x"
            )
    peak = {(row["engine"], row["N"]): row["peak_bytes"] for row in rows}
    share = _ratio(peak.get(("exact", 4)), peak.get(("unrolled", 4)))
    if share:
        lines.append(f"exact: {share:.2f} of unrolled's memory at N = 4 (to reach: below 0.5)")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Read the flags and run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["--child"]:
            values = json.loads(arguments[1])
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            config = Config(**values | {"out": Path(values["out"])})
            _child(config, Path(arguments[2]), arguments[3], int(arguments[4]))
        else:
            run(tyro.cli(Config, args=arguments, description=__doc__))
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
