"""What the small experiments share: ARC-Easy's rows, a model, and the flags that name them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nacd
from nacd.distillation.stages import open_run
from nacd.model.prepare import Prepared, prepare, read_splits
from nacd.terminal.progress import Progress


def parser(about: str | None, *, rows: str, out: str) -> argparse.ArgumentParser:
    """A parser with the flags that `opened` reads."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--data", type=Path, required=True)
    found.add_argument("--model", default="smollm2")
    found.add_argument("--rows", default=rows)
    found.add_argument("--max-tokens", type=int, default=64)
    found.add_argument("--target-rows", type=int, default=64)
    found.add_argument("--out", type=Path, default=Path(out))
    return found


def opened(
    options: argparse.Namespace, progress: Progress, **outer: Any
) -> tuple[nacd.DistillConfig, Prepared]:
    """The configuration that the flags make, and its model and rows.

    Raises:
        UserError: --out holds an experiment with other flags, or of other rows.
    """
    config = nacd.DistillConfig(
        out=options.out,
        budget=options.rows,
        model=nacd.ModelConfig(model=options.model),
        data=nacd.DataConfig(
            data=str(options.data / "train.jsonl"),
            heldout=str(options.data / "validation.jsonl"),
            max_tokens=options.max_tokens,
            target_rows=options.target_rows,
        ),
        outer=nacd.OuterLoopConfig(objective="target-loss", **outer),
    )
    splits = read_splits(config.data)
    open_run(config, splits)
    return config, prepare(config.model, config.data, progress.say, splits)
