"""How time and memory grow: with rows, the vocabulary, inner steps and pseudo-rows.

    python benchmarks/growth.py --quick            # a few minutes
    python benchmarks/growth.py                    # about an hour of one core
    python benchmarks/growth.py --lines bm25 --rows 100000 300000 1000000

Every point is a process of its own, so that its peak resident set is its own, and a file
`<line>-<size>.json` of --out: stopped, the same command goes on. Time is the processor's, of all
threads, so that other programs lengthen it little; Python's start and imports are left out of it.
On a CUDA device time is the clock's. The slope is that of the least-squares line.

    random, longest, bm25   all of `nacd select`: reading, tokenising, choosing 5 %, writing
    dedup                   random with --dedup 0.8, and half of the rows chosen
    vocabulary              256 vectors of 576 numbers to their nearest rows of a random table
    steps                   a meta-gradient through N inner steps on the same 32 pseudo-rows
    pseudo-rows             a meta-gradient through one pass over so many, 8 a batch

Rows are made of the words of the MMLU exemplars, about 60 tokens each; every tenth is a near-copy.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from nacd.errors import UserError
from nacd.store.files import read_json, write_json, write_json_lines
from nacd.store.memory import peak_resident
from nacd.terminal.units import byte_size

Line = Literal["random", "longest", "bm25", "dedup", "vocabulary", "steps", "pseudo-rows"]
LINES: tuple[Line, ...] = (
    *("random", "longest", "bm25", "dedup"),
    *("vocabulary", "steps", "pseudo-rows"),
)
QUICK: dict[str, tuple[int, ...]] = {
    "rows": (500, 1000, 2000),
    "vocabulary": (8_192, 16_384, 32_768),
    "steps": (1, 2, 4),
    "pseudo_rows": (8, 16, 32),
}
UNITS = {"vocabulary": "token", "steps": "inner step", "pseudo-rows": "pseudo-row"}
"""What a line's size counts, where it is no row."""
BATCH = 8
"""Pseudo-rows a batch."""


@dataclass(frozen=True)
class Config:
    """Benchmark of growth."""

    lines: tuple[Line, ...] = LINES
    """Which lines are measured."""
    quick: bool = False
    """Small sizes instead of those below."""
    rows: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000)
    """Rows of a data set, for the four choices."""
    vocabulary: tuple[int, ...] = (16_384, 32_768, 65_536, 131_072, 262_144)
    """Rows of the embedding table."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Inner steps N."""
    pseudo_rows: tuple[int, ...] = (8, 16, 32, 64)
    """Pseudo-rows, whole batches of 8."""
    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    tokens: int = 48
    """Tokens of a pseudo-row."""
    plot: Path | None = None
    """HTML page of all lines, with plotly."""
    out: Path = Path("runs/growth")
    """Folder for the points."""

    def sizes(self, line: str) -> tuple[int, ...]:
        """The sizes of a line."""
        name = {"pseudo-rows": "pseudo_rows"}.get(line, line if line in UNITS else "rows")
        return QUICK[name] if self.quick else getattr(self, name)


# --- one point ----------------------------------------------------------------------------------


def made_rows(count: int) -> Iterator[dict[str, str]]:
    """Rows of words that stand in the MMLU exemplars; every tenth differs in one word alone."""
    from nacd.data import mmlu_exemplars

    words = " ".join(f"{e.prompt} {e.response}" for e in mmlu_exemplars("rationale")).split()
    draw = np.random.default_rng(0)
    row: list[str] = []
    for number in range(count):
        if number % 10 == 9:
            row = [*row[:-1], words[draw.integers(len(words))]]
        else:
            row = [words[i] for i in draw.integers(len(words), size=draw.integers(10, 31))]
        yield {"instruction": " ".join(row[: len(row) // 2]), "output": " ".join(row)}


def select(line: str, size: int, config: Config) -> Callable[[], Any]:
    """Choose of so many rows, as `nacd select` does."""
    from nacd.commands import select as command
    from nacd.config import DataConfig, ModelConfig, SelectionConfig
    from nacd.config.commands import SelectConfig
    from nacd.terminal.progress import Progress

    folder = Path(tempfile.mkdtemp(prefix="growth-"))
    write_json_lines(folder / "rows.jsonl", made_rows(size))
    copies = line == "dedup"
    asked = SelectConfig(
        out=folder / "run",
        method="random" if copies else line,
        budget="50%" if copies else "5%",
        model=ModelConfig(model=config.model),
        data=DataConfig(data=str(folder / "rows.jsonl")),
        selection=SelectionConfig(dedup=0.8 if copies else 0.0),
    )
    return lambda: command.select(asked, progress=Progress(quiet=True))


def project(size: int) -> Callable[[], Any]:
    """Nearest rows of a table of so many."""
    import torch

    from nacd.distillation.neighbours import nearest

    draw = torch.Generator().manual_seed(0)
    table = torch.randn(size, 576, generator=draw)
    vectors = torch.randn(256, 576, generator=draw)
    return lambda: nearest(vectors, table)


def meta(line: str, size: int, config: Config) -> Callable[[], Any]:
    """A meta-gradient through so many steps, or through so many pseudo-rows."""
    from metagradient import Config as Settings
    from metagradient import Setting

    steps, pool = (size, 4) if line == "steps" else (size // BATCH, size // BATCH)
    settings = Settings(model=config.model, rows=BATCH, tokens=config.tokens, pool=pool)
    setting = Setting(settings, Path(tempfile.mkdtemp(prefix="growth-")), checkpointing=False)
    return lambda: setting.meta("one-sided", steps)


def point(line: str, size: int, config: Config) -> dict[str, Any]:
    """Measure one size of one line, in this process."""
    if line in ("steps", "pseudo-rows"):
        work = meta(line, size, config)
    else:
        work = project(size) if line == "vocabulary" else select(line, size, config)
    import torch

    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    began = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return {
        "line": line,
        "size": size,
        "seconds": clock() - began,
        "peak": torch.cuda.max_memory_allocated() if cuda else peak_resident(),
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


# --- all points ---------------------------------------------------------------------------------


def measured(config: Config, line: str, size: int) -> dict[str, Any]:
    """A point from its file, or from a process of its own."""
    file = config.out / f"{line}-{size}.json"
    asked = {"model": config.model, "tokens": config.tokens}
    if file.is_file():
        found = read_json(file)
        if found["asked"] != asked:
            raise UserError(f"{file} is of other settings ({found['asked']}). Give another --out.")
        return found
    print(f"{line}, {size:,} ...", file=sys.stderr)
    plan = json.dumps({"line": line, "size": size} | asked)
    done = subprocess.run(
        [sys.executable, __file__, "--point", plan],
        capture_output=True,
        text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["killed: out of memory?"])[-1]
        raise UserError(f"{line}, {size:,}: the process failed ({why[:300]}).")
    found = json.loads(done.stdout.splitlines()[-1]) | {"asked": asked}
    write_json(file, found)
    return found


@dataclass(frozen=True)
class Fit:
    """The straight line through a line's points: value = start + slope * size."""

    start: float
    slope: float

    def doubling(self, largest: float) -> float:
        """What the value is multiplied by when the size doubles to the largest measured."""
        before = self.start + self.slope * largest / 2
        return (self.start + self.slope * largest) / before if before > 0 else float("nan")


def fitted(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """Least squares; two points or more."""
    slope, start = np.polyfit(sizes, values, 1)
    return Fit(float(start), float(slope))


def table(line: str, points: Sequence[dict[str, Any]]) -> str:
    """A line's points and what they say, in at most 80 columns."""
    unit = UNITS.get(line, "row")
    lines = [f"{line:<14}{unit + 's':>14}{'seconds':>12}{'peak memory':>15}"]
    lines += [
        f"{'':<14}{p['size']:>14,}{p['seconds']:>12.3g}{byte_size(p['peak']):>15}" for p in points
    ]
    if len(points) > 1:
        sizes = [p["size"] for p in points]
        times = fitted(sizes, [p["seconds"] for p in points])
        memory = fitted(sizes, [p["peak"] for p in points])
        lines += [
            f"  {1e3 * times.slope:.3g} ms and {memory.slope / 1e3:.3g} kB more for each {unit};",
            f"  doubling {unit}s to {max(sizes):,} multiplies time by "
            f"{times.doubling(max(sizes)):.2f}, memory by {memory.doubling(max(sizes)):.2f}.",
        ]
    return "\n".join(lines)


def plot(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """All lines as an HTML page that needs no network."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(found), cols=2)
    for row, (line, points) in enumerate(found.items(), 1):
        sizes = [p["size"] for p in points]
        values = {
            "seconds": [p["seconds"] for p in points],
            "GB": [p["peak"] / 1e9 for p in points],
        }
        for column, (unit, own) in enumerate(values.items(), 1):
            figure.add_scatter(x=sizes, y=own, name=line, showlegend=False, row=row, col=column)
            figure.update_xaxes(title_text=f"{UNITS.get(line, 'row')}s", row=row, col=column)
            figure.update_yaxes(
                title_text=f"{line}: {unit}", rangemode="tozero", row=row, col=column
            )
    figure.update_layout(height=320 * len(found), title_text="Time and memory by size")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(file, include_plotlyjs=True)


def run(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Measure what is not yet measured, print each line when it is done."""
    if wrong := [n for n in config.sizes("pseudo-rows") if n < BATCH or n % BATCH]:
        raise UserError(f"--pseudo-rows {wrong[0]}: give a multiple of {BATCH}.")
    found = {}
    for line in config.lines:
        found[line] = [measured(config, line, size) for size in sorted(config.sizes(line))]
        print(table(line, found[line]), flush=True)
    first = next(iter(found.values()))[0]
    print(f"\n{first['device']}; {Path(config.model).name}; {first['date']}")
    if config.plot is not None:
        plot(found, config.plot)
        print(f"written: {config.plot}")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Read the flags and run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["--point"]:
            asked = json.loads(arguments[1])
            line, size = asked.pop("line"), asked.pop("size")
            print(json.dumps(point(line, size, Config(**asked))))
        else:
            run(tyro.cli(Config, args=arguments, description=__doc__))
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
