"""What the commands that distil are told alike."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nacd.config.experts import ExpertConfig
from nacd.config.model import ModelConfig
from nacd.config.outer import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.config.rows import DataConfig
from nacd.config.selection import SelectionConfig
from nacd.config.settings import Folder


@dataclass(frozen=True)
class TableConfig:
    """A distillation, or several, and the table of what they are held against."""

    out: Folder = Folder(Path("runs/distill"))
    """Run folder; the same command again goes on where it stopped."""
    seed: int = 0
    """Seed of everything that is drawn."""
    start_by: str = "random"
    """How the starting rows are chosen: `random`, or a method of `nacd select`."""
    tune: bool = False
    """Find learning rate and epochs first, on validation rows, by whole trainings (on the starting
    rows; `nacd compare`: on random rows, for each model and budget); off: train by those given."""
    tune_rates: tuple[float, ...] = ()
    """Old, gone in the next release: learning rates alone to try first; see --tune."""
    full_epochs: float = 1.0
    """Epochs of the table's row `full` (also shown at equal steps)."""
    track: str = ""
    """Send metrics to a tracker too: `trackio`, `tensorboard` or `wandb`, offline; empty: none."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    outer: OuterLoopConfig = field(default_factory=OuterLoopConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def shared(self) -> dict[str, Any]:
        """These fields by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(TableConfig)}
