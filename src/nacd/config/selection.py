"""How real rows are chosen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from nacd.config.rows import DataConfig


@dataclass(frozen=True)
class SelectionConfig:
    """How real rows are chosen."""

    dedup: float = 0.0
    """Leave out rows whose words are this alike (Jaccard, MinHash) to a kept row's; 0: none."""
    stratify: bool = False
    """Choose from every group of rows (--group-column) in proportion to its size."""
    round_robin: bool = False
    """`less`: target rows take turns to choose, instead of each row's largest subtask score."""
    tries: int = 16
    """`best-of`: random draws that are trained on."""
    judge: Literal["auto", "target", "train"] = "auto"
    """`best-of`, `swaps`, `winnow`: rows whose loss decides: target rows, or 256 training rows set
    aside. `auto`: target rows where --target names them, else training rows."""
    warmup_share: float = 0.05
    """`less`: share of the training rows that the warm-up trains on."""
    warmup_epochs: int = 4
    """`less`: epochs of the warm-up; each ends with a checkpoint that features are taken at."""
    projection_dim: int = 8192
    """`less`: length that gradients are projected to."""
    minutes: float = 30.0
    """`swaps`, `winnow`: time of the search, all calls together; more of it goes on from where it
    ended."""
    swaps_from: str = "random"
    """`swaps`: the rows that it begins with: `random`, or another method."""
    also: tuple[str, ...] = ()
    """`swaps`, `winnow`: further models that weigh or judge; what is kept lowers the mean loss of
    all."""
    also_rates: tuple[float, ...] = ()
    """`swaps`, `winnow`: learning rates of the models of --also, in their order; none:
    --learning-rate."""
    weight_passes: int = 2
    """`trajectory`: how often every row is weighed, each time among other rows."""


def with_judge(selection: SelectionConfig, data: DataConfig) -> SelectionConfig:
    """The settings of a choice with the judge of `best-of` and `swaps` named."""
    if selection.judge != "auto":
        return selection
    return dataclasses.replace(selection, judge="target" if data.target else "train")
