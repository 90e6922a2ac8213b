"""ARC-Easy at full length on a GPU, in resumable pieces: choices, soft labels, distilled text.

    python experiments/gpu.py --data FOLDER --runs FOLDER --minutes 9

Each call goes on where the last one stopped, stops by itself after `--minutes`, and prints one
table of what is done so far. FOLDER holds ARC-Easy's train.jsonl and validation.jsonl. First comes
a comparison of choices and soft labels at three budgets, on --model and --targets, then
distillations in the order of what they are expected to tell; `--variants` names some of them. All
train by the tool's own recipe: four epochs, shuffled.
"""

from __future__ import annotations

import argparse
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import nacd
from nacd.comparison.text import lines
from nacd.store.folder import read_comparison
from nacd.terminal.progress import Progress

VARIANTS: dict[str, dict[str, Any]] = {
    "train-simplex": {},
    "best-of-simplex": {"start_by": "best-of"},
    "whole-simplex": {"pool": 0},
    "train-nearest": {"projection": "nearest", "beta": 0.1},
    "trajectory-nearest": {"objective": "trajectory", "projection": "nearest", "beta": 0.1},
    "trajectory-simplex": {"objective": "trajectory"},
    "target-simplex": {"objective": "target-loss"},
}
"""Objective (other training rows unless it is named) and projection; how the starting rows are
chosen; `pool` 0: through the whole training, not its last epoch alone."""
NAMES = ["choices", *VARIANTS]
CHOICES = ("zero-shot", "random", "labelled", "best-of", "bm25", "rds+", "less", "full")


class Over(KeyboardInterrupt):
    """The time is up; runs stop as on Ctrl-C."""


def configuration(options: argparse.Namespace, name: str, seed: int) -> nacd.DistillConfig:
    """One variant's run."""
    changes = dict(VARIANTS[name])
    start_by = changes.pop("start_by", "random")
    base = nacd.OuterLoopConfig(
        objective="train-loss", outer_steps=options.outer_steps, check_every=20
    )
    return nacd.DistillConfig(
        out=options.runs / f"{name}-{seed}",
        budget=options.budget,
        seed=seed,
        start_by=start_by,
        trainings=5,
        full_epochs=2.0,
        model=nacd.ModelConfig(model=options.model),
        data=nacd.DataConfig(
            data=str(options.data / "train.jsonl"),
            heldout=str(options.data / "validation.jsonl"),
            max_tokens=options.max_tokens,
        ),
        recipe=nacd.Recipe(batch_size=8),
        outer=replace(base, **changes),
    )


def comparison(options: argparse.Namespace) -> nacd.CompareConfig:
    """The choices and soft labels, of one grid."""
    run = configuration(options, "train-simplex", 0)
    return nacd.CompareConfig(
        out=options.runs / "choices",
        methods=CHOICES,
        budgets=options.budgets,
        target_models=tuple(options.targets),
        trainings=5,
        full_epochs=2.0,
        tune=True,
        model=run.model,
        data=run.data,
        recipe=run.recipe,
    )


def print_table(runs: Path) -> None:
    """What has ended."""
    choices = runs / "choices"
    found = read_comparison(choices).results if (choices / "run.yaml").is_file() else None
    if found:
        print(*lines(found["table"]), "", sep="\n")
    print(f"{'run':<24}{'row':<22}{'NLL':>8}{'vs start':>18}{'changed':>9}")
    for file in sorted(runs.glob("*/results.json")):
        if file.parent == choices:
            continue
        for row in json.loads(file.read_text())["table"]:
            against, changed = row.get("minus_seeds"), row["tokens_changed"]
            half = row.get("minus_seeds_95")
            versus = "" if against is None else f"{against:+.3f}"
            versus += "" if half is None else f" ± {half:.3f}"
            print(
                f"{file.parent.name:<24}{row['label']:<22}{row['report_nll']:>8.3f}{versus:>18}"
                f"{'' if changed is None else f'{changed:.1%}':>9}"
            )


def main() -> None:
    """Run the variants until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--targets", nargs="+", default=[], help="further models to train")
    parser.add_argument("--budgets", nargs="+", default=["1%", "2.5%", "5%"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--outer-steps", type=int, default=200)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--budget", default="112")
    parser.add_argument("--max-tokens", type=int, default=96)
    options = parser.parse_args()

    def over(*_: object) -> None:
        raise Over

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes)
    progress = Progress()
    try:
        if "choices" in options.variants:
            nacd.compare(comparison(options), progress=progress)
        for seed in range(options.seeds):
            for name in (name for name in options.variants if name in VARIANTS):
                config = configuration(options, name, seed)
                if not (config.out / "results.json").is_file():
                    nacd.distill(config, progress=progress)
    except Over:
        progress.say("time is up; the same command goes on")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print_table(options.runs)


if __name__ == "__main__":
    main()
