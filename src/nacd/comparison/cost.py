"""What a grid will take, before anything of it runs: measured steps times counted tokens.

Choices, outer steps and trainings that its folder already holds take nothing; a choice half-way
counts whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nacd.comparison.grid import cell_folder, folder_name
from nacd.comparison.labelled import teacher_file
from nacd.config import decided, with_judge
from nacd.config.compare import DISTILLED, CompareConfig
from nacd.config.recipe import Recipe
from nacd.costs.costs import (
    FORWARD,
    Speed,
    Work,
    choosing_stage,
    table_trainings,
    tokens_of,
    tuning_stage,
)
from nacd.costs.done import Done
from nacd.costs.forecasts import distillation
from nacd.data import Encoded
from nacd.model.prepare import Prepared
from nacd.selection import METHODS
from nacd.terminal.units import duration


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
    there = Done(folder)
    selection = with_judge(config.selection, config.data)
    config = replace(config, outer=decided(config.outer, config.data))
    source_name, own = next(iter(per_token.items()))
    report = tokens_of(source.report.rows)
    measuring = FORWARD * (report + tokens_of(elsewhere))
    answers = [len(e.choices) for e in source.report.examples if e.choices]
    answering = FORWARD * report * sum(answers) / max(1, len(answers))
    before: dict[str, float] = {}
    training = dict.fromkeys(per_token, 0.0)
    trainings, done = 0, 0
    ranked: set[str] = set()
    for budget in config.sizes:
        rows = len(budget.rows(source.train.rows, range(len(source.train))))
        work = Work(source, recipe, rows)
        for method in (name for name in config.methods if name in METHODS):
            stage = choosing_stage(work, Speed(own), method, selection)
            if stage.seconds and not there.has(f"choosing/{budget}/{method}/chosen"):
                if method in ranked:  # for an earlier budget
                    continue
                ranked |= set() if METHODS[method].of_budget else {method}
                before[f"{stage.name}, budget {budget}"] = stage.seconds
        if not config.runs and any(method in DISTILLED for method in config.methods):
            runs = [config.distillation(budget, n, recipe) for n in range(config.distillations)]
            left = [distillation(run, source, Speed(own), folder and run.out) for run in runs]
            if seconds := math.fsum(each.seconds for each in left):
                before[f"distilling, budget {budget}"] = seconds
        for name, speed in per_token.items():
            stage = tuning_stage(work, Speed(speed), config.tune, config.tune_rates)
            known = config.tune and config.runs and name == source_name  # the runs' recipe is taken
            made = there.has(f"tuning/{folder_name(name)}-{budget}")
            if stage.seconds and not known and not made:
                before[f"tuning {Path(name).name}, budget {budget}"] = stage.seconds
            asked = [m for m in config.methods if m != "soft" or name == source_name]
            full = (config.full_epochs, config.full_trainings)
            taught = folder is not None and (folder / teacher_file(name)).is_file()
            if "labelled" in asked and not taught and budget == config.sizes[0]:
                _, (_, _, whole) = table_trainings(work, ("full",), 1, *full)
                before[f"training a teacher of {Path(name).name}"] = speed * whole
            for row, count, one in table_trainings(work, asked, config.trainings, *full):
                trainings += count
                for seed in range(count):
                    cell = there.read(f"{cell_folder(name, str(budget), row, seed)}/result")
                    spent = 0.0 if cell else measuring
                    if cell and elsewhere and cell.get("elsewhere") is None:
                        spent = FORWARD * tokens_of(elsewhere)
                    if row in config.accuracy and not (cell and cell.get("accuracy")):
                        spent += answering
                    done += not spent
                    training[name] += speed * (spent and one + spent)
    return Forecast(before, training, trainings, done)
