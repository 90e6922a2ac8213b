"""Never losing a night's work: kill a run anywhere, go on, and hold it against one left alone.

    python experiments/faults.py [--kills 100] [--seed 0] [--pipelines learn experts less grid]
    python experiments/faults.py --renames [--pipelines learn]

Small pipelines on a tiny random model, seconds each:

    learn     distill by --objective train-loss with a pool of students
    experts   distill by --objective trajectory: recorded experts, then learning
    less      select --method less: a warm-up, features in shards, a choice
    grid      compare random and longest rows: a training a cell

`--kills N`: SIGKILL at N random moments, several in a row to one run. `--renames`: SIGKILL right
before, and right after, every rename of a file, one to a run. Every run goes on until it ends. Then
its rows, its figures and its snapshots must be those of the run left alone, and nothing that had
been kept may have been made twice, so that at most what lies between two snapshots is lost. A
process of a run is forked, so that nothing is imported again; the product knows nothing of all
this. It needs a checkout: the tiny model is the tests' own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from nacd.commands.compare import compare
from nacd.commands.distill import distill
from nacd.commands.select import select
from nacd.config import DataConfig, DistillConfig, ExpertConfig, OuterLoopConfig, SelectionConfig
from nacd.config.commands import SelectConfig
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.model.lora import ModelConfig
from nacd.terminal.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Run = Callable[[Path], Any]
"""Does a pipeline in a folder, from the beginning or from where it is."""
ONCE = (
    "seeds.json",
    "doctor.json",
    "agreement.json",
    "chosen.json",
    "ladder/*.json",
    "cells/*/*/*/*/result.json",
    "selection/warmup/*.safetensors",
    "selection/features/*/*.safetensors",
    "choosing/*/*/chosen.json",
)
"""Files that are made once a run. Beside them count every outer step's state, and every snapshot of
an expert once its manifest names it."""


def pipelines(model: Path, data: Path) -> dict[str, Run]:
    """The pipelines, by name."""
    quiet = Progress(quiet=True)
    shared: dict[str, Any] = {
        "model": ModelConfig(model=str(model), lora_rank=2),
        "data": DataConfig(data=str(data), target_rows=4, template="alpaca"),
        "recipe": Recipe(batch_size=2, epochs=2, learning_rate=5e-3),
    }
    outer = OuterLoopConfig(
        outer_steps=4, check_every=2, check_trainings=1, engine="exact", pool=2, renew=1
    )
    matching = OuterLoopConfig(
        outer_steps=2, objective="trajectory", expert_start=1, agreement=0, check_trainings=1
    )
    table: dict[str, Any] = {"budget": "4", "trainings": 1, "compare": ("seeds", "text")}
    experts = ExpertConfig(expert_batch=8, snapshot_every=1)
    choice = SelectionConfig(projection_dim=64, warmup_share=0.5, warmup_epochs=2)

    def learn(out: Path) -> Any:
        return distill(DistillConfig(out=out, outer=outer, **table, **shared), progress=quiet)

    def match(out: Path) -> Any:
        config = DistillConfig(out=out, outer=matching, expert=experts, **table, **shared)
        return distill(config, progress=quiet)

    def less(out: Path) -> Any:
        config = SelectConfig(out=out, method="less", budget="4", selection=choice, **shared)
        return select(config, progress=quiet)

    def grid(out: Path) -> Any:
        config = CompareConfig(
            out=out, methods=("random", "longest"), budgets=("4",), trainings=3, **shared
        )
        return compare(config, progress=quiet)

    return {"learn": learn, "experts": match, "less": less, "grid": grid}


def made(folder: Path) -> dict[str, Any]:
    """What a run promises to repeat: its files' bytes, and its figures but the time they took."""
    found: dict[str, Any] = {}
    beside = ("experts/*/step-*", "dataset/train.jsonl", "soft_prompts.safetensors")
    for pattern in (*ONCE, *beside, "**/state.safetensors"):
        for file in folder.glob(pattern):
            found[str(file.relative_to(folder))] = file.read_bytes()
    for name in [name for name in found if name.endswith(".json")]:
        found[name] = _timeless(json.loads(found[name]))
    metrics = folder / "distill" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    found["metrics"] = [_timeless(json.loads(line)) for line in lines]
    found["results"] = _timeless(json.loads((folder / "results.json").read_text()))
    return found


def _timeless(value: Any) -> Any:
    """Without what differs from run to run: times, and the seals of files that hold them."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "seconds" not in k and k != "seal"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def process(
    run: Run,
    folder: Path,
    log: Path,
    *,
    after: float | None = None,
    at: tuple[int, bool] = (0, False),
) -> bool:
    """One process of a run, perhaps killed; whether it came to its end.

    Args:
        run: the pipeline.
        folder: its run folder.
        log: gets a line for every file that is made once, when it is there.
        after: seconds after which the process is killed.
        at: number (from 1) of the rename at which it kills itself, and whether right after it.

    Raises:
        RuntimeError: it failed; its traceback has been printed.
    """
    child = os.fork()
    if child == 0:
        try:
            _watch_renames(folder, log, *at)
            run(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if after is not None:
        end = time.monotonic() + after
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _ended(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return _ended(os.waitpid(child, 0)[1])


def _ended(status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run that went on failed with status {code}")
    return code == 0


def _watch_renames(folder: Path, log: Path, number: int, behind: bool) -> None:
    """Log the renames of files that are made once, and kill the process at the `number`-th."""
    rename, count = os.replace, 0

    def replace(source: Any, target: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == number and not behind:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **options)
        path = Path(target)
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else ""
        if path.name == "state.safetensors":
            lines = (path.parent / "metrics.jsonl").read_text().count("\n")
            name = f"state after {lines - 1} steps"
        if Path(name).match("experts/*/manifest.json"):
            name = f"state of {name}, {len(json.loads(path.read_text())['snapshots'])} snapshots"
        if name.startswith("state") or any(Path(name).match(pattern) for pattern in ONCE):
            with log.open("a") as file:
                file.write(f"{name}\n")
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def check(folder: Path, log: Path, expected: dict[str, Any]) -> list[str]:
    """What is wrong with a run that was killed and went on; nothing: nothing."""
    found = made(folder)
    wrong = [
        f"{name} is another" for name in found | expected if found.get(name) != expected.get(name)
    ]
    twice = [name for name, times in Counter(log.read_text().splitlines()).items() if times > 1]
    alone = (folder / ".lock").is_file()  # else another process might be writing it
    left = [str(path) for path in folder.rglob("*.partial-*") if alone]
    return wrong + [f"{name} was made twice" for name in twice] + [f"{p} is left" for p in left]


def random_kills(run: Run, folder: Path, kills: int, draw: random.Random) -> tuple[int, list[str]]:
    """Kill a run `kills` times at random moments; kills that hit it, and what is wrong then."""
    began = time.monotonic()
    alone, log = folder / "alone", folder / "log"
    process(run, alone, folder / "log-alone")
    lasts = time.monotonic() - began
    hits = 0
    for _ in range(kills):
        hits += not process(run, folder / "run", log, after=draw.uniform(0, lasts))
    process(run, folder / "run", log)
    return hits, check(folder / "run", log, made(alone))


def kills_at_renames(run: Run, folder: Path) -> tuple[int, list[str]]:
    """Kill a fresh run at every rename, before and after; the kills, and what is wrong."""
    process(run, folder / "alone", folder / "log-alone")
    expected, hits, wrong = made(folder / "alone"), 0, []
    for behind in (False, True):
        number, ended = 0, False
        while not ended:
            number += 1
            place = folder / f"{'after' if behind else 'before'}-{number}"
            log = place.with_suffix(".log")
            ended = process(run, place, log, at=(number, behind))
            hits += not ended
            if not ended:
                process(run, place, log)
            wrong += [f"{place.name}: {said}" for said in check(place, log, expected)]
    return hits, wrong


def prepared(folder: Path) -> dict[str, Run]:
    """The pipelines on a tiny model and thirty rows, which are written into a folder."""
    from tiny import tiny_model  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    data = folder / "rows.jsonl"
    rows = [{"instruction": f"Which colour has {i}?", "output": f"red {i}"} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pipelines(tiny_model("gpt2", folder / "model"), data)


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, go on, compare; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--in-a-row", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--renames", action="store_true")
    parser.add_argument("--pipelines", nargs="+", default=["learn", "experts", "less", "grid"])
    asked = parser.parse_args(argv)
    draw, bad = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory() as place:
        runs = prepared(Path(place))
        if asked.renames:
            for name in asked.pipelines:
                folder = Path(place) / f"renames-{name}"
                folder.mkdir()
                hits, wrong = kills_at_renames(runs[name], folder)
                bad += len(wrong)
                print(f"{name}: {hits} kills at renames, {len(wrong)} faults {wrong}", flush=True)
            return bool(bad)
        done, number = 0, 0
        while done < asked.kills:
            name = asked.pipelines[number % len(asked.pipelines)]
            folder = Path(place) / f"{number}"
            folder.mkdir()
            hits, wrong = random_kills(runs[name], folder, asked.in_a_row, draw)
            done, number, bad = done + hits, number + 1, bad + len(wrong)
            print(f"{name}: {hits} kills ({done}), {len(wrong)} faults {wrong}", flush=True)
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
