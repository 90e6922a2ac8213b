"""What LESS's gradient features cost, beside plain training of one row at a time.

    python benchmarks/less.py        # SmolLM2-135M: some ten minutes on two cores, most for memory

Speed: rows a second of `extract` (gradient, Adam's direction, projection, shards on disk) as a
share of plain one-row training steps a second (gradient, AdamW), block by block in turns; the
median of the blocks' ratios, which other programs on the machine disturb little. Below it, what the
direction and the projection alone take of a row.

Memory: peak of the features and the scores at two numbers of rows, a fresh process each, after the
warm-up (which is as long in both); on Linux the resident set, on CUDA torch's own count. Every row
is equally long, so that the two differ in the number of rows alone.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
import tyro
from peak import PeakMemory

from nacd.config import SelectionConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Example, Message, collate, make_template, mmlu_exemplars
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.prepare import Part, Prepared
from nacd.selection.features import AdamDirection, FeatureSet, extract
from nacd.selection.less import gradient_features, similarity, warm_up
from nacd.selection.method import Task
from nacd.selection.projection import Projection
from nacd.selection.rounds import subtask_max
from nacd.store.files import write_json
from nacd.terminal.progress import Progress
from nacd.training.update import initial_state, step

REACH = 0.8
WARM = 32
"""Rows of the warm-up before memory is measured."""


@dataclass(frozen=True)
class Config:
    """LESS benchmark."""

    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    tokens: int = 64
    """Tokens a row, the second half labels."""
    block: int = 32
    """Rows a timed block, and rows a shard in it."""
    batch_size: int = 8
    """Rows that go through the model together for their features."""
    repeats: int = 9
    """Blocks of each kind, in turns."""
    projection_dim: int = 8192
    memory_rows: tuple[int, ...] = (1000, 4000)
    """Numbers of rows that the peak memory is measured at; empty: it is not."""
    target_rows: int = 16
    """Target rows in the memory measurement."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    lora_rank: int = 8
    out: Path = Path("runs/less")
    """Folder for `less.json`."""


def load(config: Config) -> LoraModel:
    """The model with LoRA on all its linear layers."""
    return load_model(
        ModelConfig(
            model=config.model,
            dtype=config.dtype,
            attention=config.attention,
            device=config.device,
            lora_rank=config.lora_rank,
        )
    )


def part(model: LoraModel, config: Config, count: int, offset: int = 0) -> Part:
    """Rows of running text, all equally long."""
    text = "\n\n".join(f"{e.prompt}\n{e.response}" for e in mmlu_exemplars("rationale"))
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    room = len(ids) - config.tokens
    if room < 1 or config.tokens < 2:
        raise UserError(f"--tokens {config.tokens}: give from 2 to {len(ids) - 1}.")
    half = config.tokens // 2
    response = (False,) * half + (True,) * (config.tokens - half)
    examples, rows = [], []
    for number in range(offset, offset + count):
        start = 97 * number % room
        rows.append(Encoded(tuple(ids[start : start + config.tokens]), response, (0, half)))
        turns = (Message("user", f"row {number}"), Message("assistant", "as encoded"))
        examples.append(Example(turns, f"row {number}"))
    return Part(tuple(examples), tuple(rows))


# --- speed ------------------------------------------------------------------------------------


def clock(model: LoraModel) -> float:
    """Seconds, once the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    elif model.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def timed(model: LoraModel, work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = clock(model)
    work()
    return clock(model) - began


def speed(config: Config, scratch: Path) -> dict[str, Any]:
    """Seconds a row of plain steps and of features, block by block in turns."""
    model = load(config)
    recipe = Recipe()
    rows = part(model, config, config.block)
    rate = torch.tensor(recipe.learning_rate, device=model.device)
    theta = model.fresh_theta(0)
    state = initial_state(recipe, theta)
    count = 0

    def plain() -> None:
        nonlocal theta, state, count
        for row in rows.rows:
            batch = collate([row], model.tokenizer.pad_token_id)
            _, gradient, _ = model.value_and_grad(theta, batch)
            theta, state = step(recipe, theta, state, gradient, rate, count)
            count += 1

    plain()  # warm: caches, and moments that are not zero
    m, v = state
    direction = AdamDirection(m, v, recipe.beta1, recipe.beta2)
    projection = Projection(model.size, config.projection_dim, 0, model.device)
    at = theta

    def features() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        into = FeatureSet(scratch, {"benchmark": "less"}, config.block)
        extract(model, at, direction, projection, rows, into, config.batch_size)

    features()
    found: dict[str, Any] = {"plain": [], "features": [], "direction": [], "projection": []}
    machine = psutil.cpu_times()
    began, own = time.perf_counter(), time.process_time()
    gradient = torch.randn(model.size, device=model.device).to(at) * 1e-3
    for repeat in range(config.repeats):
        note(f"speed: {repeat + 1} of {config.repeats}")
        found["plain"].append(timed(model, plain) / config.block)
        found["features"].append(timed(model, features) / config.block)
        found["direction"].append(timed(model, lambda: direction(gradient.clone())))
        found["projection"].append(timed(model, lambda: projection(gradient)))
    now = psutil.cpu_times()
    busy = sum(getattr(now, k, 0.0) - getattr(machine, k, 0.0) for k in ("user", "system", "nice"))
    share = busy - (time.process_time() - own)
    found["others"] = share / (time.perf_counter() - began) / (os.cpu_count() or 1)
    found["parameters"] = model.size
    found["device"] = str(model.device)
    shutil.rmtree(scratch, ignore_errors=True)
    return found


# --- memory: one fresh process for each number of rows ----------------------------------------


def child(config: Config, scratch: Path, count: int) -> None:
    """Run LESS on `count` rows; print the memory that features and scores took as a JSON line."""
    model = load(config)
    train = part(model, config, count)
    target = part(model, config, config.target_rows, count)
    template = make_template("plain", model.tokenizer, [])
    task = Task(
        prepared=Prepared(model, template, train, target, target, target),
        recipe=Recipe(batch_size=config.batch_size, warmup=0.0),
        config=SelectionConfig(
            warmup_share=min(1.0, WARM / count),
            warmup_epochs=1,
            projection_dim=config.projection_dim,
        ),
        seed=0,
        folder=scratch,
        progress=Progress(quiet=True),
    )
    checkpoints = warm_up(task)
    memory = PeakMemory(model.device)
    sets = gradient_features(task, checkpoints)
    blocks = similarity([c.weight for c in checkpoints], sets)
    scores = np.concatenate([subtask_max(b, [""] * len(target)) for b in blocks])
    assert scores.shape == (count,)
    print(json.dumps({"rows": count} | memory.read()))


def memory(config: Config, scratch: Path, count: int) -> dict[str, Any]:
    """Peak memory at `count` rows, in a process of its own."""
    note(f"memory: {count} rows")
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    shutil.rmtree(scratch, ignore_errors=True)
    command = [sys.executable, __file__, "--child", json.dumps(plain), str(scratch), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(scratch, ignore_errors=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["killed: out of memory?"]
        raise UserError(f"--memory-rows {count}: failed in its own process ({why[0][:300]}).")
    return json.loads(done.stdout.splitlines()[-1])


# --- the run ----------------------------------------------------------------------------------


def note(text: str) -> None:
    """A passing line for a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def run(config: Config) -> dict[str, Any]:
    """Measure, write `less.json`, print the table."""
    least = min(config.repeats, config.block, config.batch_size, *config.memory_rows)
    if least < 1:
        raise UserError("--repeats, --block, --batch-size and --memory-rows: at least 1 each.")
    scratch = config.out / "scratch"
    found = speed(config, scratch)
    ratios = [p / f for p, f in zip(found["plain"], found["features"], strict=True)]
    result: dict[str, Any] = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "speed": found,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "memory": [],
    }
    write_json(config.out / "less.json", result)
    for count in config.memory_rows:
        result["memory"].append(memory(config, scratch, count))
        write_json(config.out / "less.json", result)
    note("")
    print(table(result))
    print(f"written: {config.out / 'less.json'}")
    return result


def table(result: dict[str, Any]) -> str:
    """The table, 80 columns wide."""
    config, found = result["config"], result["speed"]
    middle = {
        name: statistics.median(found[name])
        for name in ("plain", "features", "direction", "projection")
    }
    lines = [
        f"{Path(config['model']).name}, {found['parameters']:,} LoRA parameters to "
        f"{config['projection_dim']}, rows of {config['tokens']} tokens",
        f"{config['dtype']}, {found['device']}, {result['threads']} threads, other programs "
        f"{max(0.0, found['others']):.0%} of the machine; features {config['batch_size']} a batch",
        "",
        f"{'':28}{'ms a row':>10}{'rows/s':>10}",
        "-" * 48,
        f"{'plain one-row step':28}{1e3 * middle['plain']:10.1f}{1 / middle['plain']:10.2f}",
        f"{'feature, shards included':28}{1e3 * middle['features']:10.1f}"
        f"{1 / middle['features']:10.2f}",
        f"{'  of it direction':28}{1e3 * middle['direction']:10.1f}",
        f"{'  of it projection':28}{1e3 * middle['projection']:10.1f}",
        "",
        f"rows a second as a share of plain steps: {result['ratio']:.2f} (to reach: {REACH})",
        f"(median of {len(result['ratios'])} blocks, {min(result['ratios']):.2f} to "
        f"{max(result['ratios']):.2f})",
    ]
    for row in result["memory"]:
        above = f", {row['above'] / 2**20:.0f} MiB above" if row["above"] else ""
        lines.append(f"peak at {row['rows']:6d} rows: {row['peak'] / 2**20:8.0f} MiB{above}")
    if len(result["memory"]) > 1:
        peaks = [row["peak"] for row in result["memory"]]
        lines.append(f"last peak as a multiple of the first: {peaks[-1] / peaks[0]:.3f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the flags and run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["--child"]:
            values = json.loads(arguments[1])
            values |= {"memory_rows": tuple(values["memory_rows"])}
            config = Config(**values | {"out": Path(values["out"])})
            child(config, Path(arguments[2]), int(arguments[3]))
        else:
            run(tyro.cli(Config, args=arguments, description=__doc__))
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
