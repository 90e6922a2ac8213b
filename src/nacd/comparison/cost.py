"""What a grid will take, before anything of it runs: measured steps times counted tokens.

Choices, outer steps and trainings that its folder already holds take nothing; a choice half-way
counts whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacd.comparison.grid import cell_folder, folder_name
from nacd.config import budget_rows, decided, with_judge
from nacd.config.compare import DISTILLED, CompareConfig
from nacd.config.recipe import Recipe
from nacd.costs.costs import FORWARD, Work, tokens_of
from nacd.data import Encoded
from nacd.model.prepare import Prepared
from nacd.selection import METHODS
from nacd.store.files import read_json
from nacd.terminal.units import duration
from nacd.training.tuning import SEARCHED


@dataclass(frozen=True)
class Forecast:
    """Seconds by kind of work."""

    before: dict[str, float]
    """Choosing, distilling and tuning, each by its name -> seconds."""
    training: dict[str, float]
    """Target model -> seconds of its trainings and evaluations."""
    trainings: int
    done: int = 0
    """Trainings of them that an earlier call has made."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return math.fsum((*self.before.values(), *self.training.values()))

    def describe(self) -> str:
        """A few lines, at 80 columns."""
        of = f"{self.trainings} trainings"
        if self.done:
            of += f", {self.done} of them done"
        lines = [f"the grid: {of}; about {duration(self.seconds)} to go"]
        lines += [
            f"  {name}: {duration(seconds)}"
            for name, seconds in self.before.items()
            if seconds >= 1
        ]
        lines += [
            f"  training and measuring {Path(name).name}: {duration(seconds)}"
            for name, seconds in self.training.items()
            if seconds >= 1 or not self.done
        ]
        return "\n".join(lines)


def forecast(
    config: CompareConfig,
    source: Prepared,
    per_token: Mapping[str, float],
    recipe: Recipe,
    elsewhere: Sequence[Encoded] = (),
    folder: Path | None = None,
) -> Forecast:
    """What the grid takes, from counted tokens.

    Args:
        config: the grid.
        source: the model that chooses, with all rows.
        per_token: target model -> seconds a token of training; the source's first.
        recipe: of every training.
        elsewhere: rows of other data that every trained model is measured on.
        folder: of the comparison, where an earlier call may have left something.
    """
    there = _Folder(folder)
    selection = with_judge(config.selection, config.data)
    outer = decided(config.outer, config.data)

    def distilling(work: Work) -> float:
        """One distillation, without a table."""
        chosen = work.choosing(config.start_by, selection)
        learned = work.learning(outer) + work.looking(outer)
        return chosen + work.recording(config.expert, outer) + learned

    source_name, own = next(iter(per_token.items()))
    tokens, report = tokens_of(source.train.rows), tokens_of(source.report.rows)
    measuring = FORWARD * (report + tokens_of(elsewhere))
    answers = [len(e.choices) for e in source.report.examples if e.choices]
    answering = FORWARD * report * sum(answers) / max(1, len(answers))
    before: dict[str, float] = {}
    training = dict.fromkeys(per_token, 0.0)
    trainings, done = 0, 0
    for budget in config.budgets:
        rows = len(budget_rows(budget, source.train.rows, range(len(source.train))))
        work = Work(source, recipe, rows)
        for method in config.methods:
            spent = own * work.choosing(method, selection) if method in METHODS else 0.0
            if method in METHODS and METHODS[method].anytime:
                spent = 60 * selection.minutes
            if spent and there.read(f"choosing/{budget}/{method}/chosen") is None:
                before[f"choosing by {method}, budget {budget}"] = spent
        if not config.runs and any(method in DISTILLED for method in config.methods):
            steps = config.outer.outer_steps
            shares = [there.learned(budget, n, steps) for n in range(config.distillations)]
            if left := math.fsum(1 - share for share in shares):
                before[f"distilling, budget {budget}"] = own * left * distilling(work)
        for name, speed in per_token.items():
            searched = SEARCHED if config.tune else len(config.tune_rates)
            if config.tune and config.runs and name == source_name:
                searched = 0  # the runs' recipe is taken
            if searched and there.read(f"tuning/{folder_name(name)}-{budget}") is None:
                spent = speed * searched * work.look
                before[f"tuning {Path(name).name}, budget {budget}"] = spent
            for method in config.methods:
                if method == "soft" and name != source_name:
                    continue
                kinds = [(method, config.trainings, work.one)]
                if method == "zero-shot":
                    kinds = [(method, 1, 0.0)]
                if method == "full":
                    kinds = [
                        ("full-equal-steps", config.trainings, work.one),
                        (method, config.full_trainings, config.full_epochs * tokens),
                    ]
                for row, count, one in kinds:
                    trainings += count
                    for seed in range(count):
                        cell = there.read(f"{cell_folder(name, budget, row, seed)}/result")
                        spent = 0.0 if cell else measuring
                        if cell and elsewhere and cell.get("elsewhere") is None:
                            spent = FORWARD * tokens_of(elsewhere)
                        if row in config.accuracy and not (cell and cell.get("accuracy")):
                            spent += answering
                        done += not spent
                        training[name] += speed * (spent and one + spent)
    return Forecast(before, training, trainings, done)


class _Folder:
    """What a comparison's folder holds."""

    def __init__(self, path: Path | None):
        self.path = path

    def read(self, name: str) -> dict[str, Any] | None:
        """What is kept under the name; None: nothing yet."""
        file = self.path and self.path / f"{name}.json"
        return read_json(file) if file and file.is_file() else None

    def learned(self, budget: str, number: int, steps: int) -> float:
        """The share of a distillation's outer steps that are done."""
        file = self.path and self.path / f"distilled/{budget}-{number}/distill/metrics.jsonl"
        if not file or not file.is_file():
            return 0.0
        with file.open(encoding="utf-8") as lines:
            return min(1.0, sum(1 for _ in lines) / (1 + steps))  # the first is the start
