"""What the small experiments share: the rows, a model, the flags that name them, a table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import nacd
from nacd.distillation.stages import open_run
from nacd.model.prepare import Prepared, prepare, read_splits
from nacd.statistics.intervals import difference_interval, question_bootstrap
from nacd.terminal.progress import Progress


class Figures:
    """Test NLL of sets of rows, training by training."""

    def __init__(self) -> None:
        self.sums: dict[str, list[np.ndarray]] = {}
        """Of every set and training, the summed NLL of each test row, (n,)."""
        self.tokens = np.zeros(0)
        """Response tokens of each test row, (n,)."""

    def add(self, name: str, measured: Mapping[str, Any]) -> float:
        """Take a training's `nll` and `tokens`; returns its NLL per token."""
        self.tokens = np.asarray(measured["tokens"])
        self.sums.setdefault(name, []).append(np.asarray(measured["nll"]))
        return self.values(name)[-1]

    def values(self, name: str) -> list[float]:
        """NLL per token of every training of a set."""
        return [float(one.sum() / self.tokens.sum()) for one in self.sums[name]]

    def mean(self, name: str) -> float:
        """The mean of a set's trainings."""
        return float(np.mean(self.values(name)))

    def minus(self, name: str, other: str) -> str:
        """A set minus another: mean, 95 % over trainings (Welch's t), 95 % over test rows."""
        half = difference_interval(self.values(name), self.values(other)) or math.nan
        rows = np.mean(self.sums[name], axis=0) - np.mean(self.sums[other], axis=0)
        low, high = question_bootstrap(rows, self.tokens)
        gap = self.mean(name) - self.mean(other)
        return f"{gap:+8.3f} ± {half:.3f}   {low:+.3f} to {high:+.3f}"


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
