"""ARC-Easy at full length on a GPU, in resumable pieces: which objective and projection gain text.

    python experiments/gpu.py --data FOLDER --runs FOLDER --minutes 9

Each call goes on where the last one stopped, stops by itself after `--minutes`, and prints one
table of what is done so far. FOLDER holds ARC-Easy's train.jsonl and validation.jsonl.
"""

from __future__ import annotations

import argparse
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import nacd
from nacd.progress import Progress

VARIANTS: dict[str, dict[str, Any]] = {
    "train-simplex": {"objective": "train-loss"},
    "target-simplex": {},
    "target-straight-through": {"projection": "straight-through", "beta": 0.1},
    "target-nearest": {"projection": "nearest", "beta": 0.1},
    "trajectory-simplex": {"objective": "trajectory"},
    "trajectory-nearest": {"objective": "trajectory", "projection": "nearest", "beta": 0.1},
}


class Over(BaseException):
    """The time is up."""


def configuration(data: Path, runs: Path, name: str, seed: int, steps: int) -> nacd.DistillConfig:
    base = nacd.OuterLoopConfig(objective="target-loss", outer_steps=steps, check_every=20)
    return nacd.DistillConfig(
        out=runs / f"{name}-{seed}",
        budget="112",
        seed=seed,
        draws=5,
        full_epochs=2.0,
        data=nacd.DataConfig(
            data=str(data / "train.jsonl"), heldout=str(data / "validation.jsonl"), max_tokens=96
        ),
        recipe=nacd.Recipe(batch_size=8, epochs=2, shuffle=False),
        outer=replace(base, **VARIANTS[name]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--outer-steps", type=int, default=200)
    options = parser.parse_args()

    def over(*_: object) -> None:
        raise Over

    signal.signal(signal.SIGALRM, over)
    signal.alarm(int(60 * options.minutes))
    progress = Progress()
    try:
        for seed in range(options.seeds):
            for name in VARIANTS:
                run = configuration(options.data, options.runs, name, seed, options.outer_steps)
                nacd.distill(run, progress=progress)
    except Over:
        progress.say("time is up; the same command goes on")
    finally:
        signal.alarm(0)
    print(f"{'run':<28}{'row':<24}{'NLL':>8}{'vs seeds':>10}{'changed':>9}")
    for file in sorted(options.runs.glob("*/results.json")):
        for row in json.loads(file.read_text())["table"]:
            changed = row["tokens_changed"]
            print(
                f"{file.parent.name:<28}{row['label']:<24}{row['report_nll']:>8.3f}"
                f"{row.get('minus_seeds', float('nan')):>10.3f}"
                f"{'' if changed is None else f'{changed:.1%}':>9}"
            )


if __name__ == "__main__":
    main()
