"""Finished runs of `nacd distill` whose rows a comparison takes, instead of distilling anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nacd.config import Budget, DistillConfig
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe, recipe_of
from nacd.config.settings import from_dict, to_dict
from nacd.data.split import Splits
from nacd.distillation.run import Outcome, learn_text
from nacd.distillation.stages import ROUNDING, SAID
from nacd.errors import UserError
from nacd.model.prepare import Prepared
from nacd.store.files import sha256_of
from nacd.store.folder import read_run
from nacd.store.key import differences
from nacd.store.processes import count, spread
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress


def distilled(
    config: CompareConfig,
    budget: Budget,
    source: Prepared,
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
) -> list[Outcome]:
    """The distillations behind a budget's rows: those of --runs, or its own."""
    if config.runs:
        return [
            _taken(_of_run(config, budget, Path(run)), splits, source, recipe, progress)
            for run in config.runs
        ]
    runs = [config.distillation(budget, number, recipe) for number in range(config.distillations)]

    def learned(run: DistillConfig) -> Outcome:
        with folder.turn(f"distilled/{run.out.name}"):
            outcome = learn_text(run, splits=splits, prepared=source, progress=progress)
            outcome.folder.lock = None  # it has ended: others may read it
            return outcome

    def free(run: DistillConfig) -> Outcome | None:
        return None if folder.taken(f"distilled/{run.out.name}") else learned(run)

    if count() > 1 and len(runs) > 1:  # each is left in its folder, and read below
        made = [*spread(runs, lambda run: free(run) and None)]
    else:
        made = [free(run) for run in runs]
    return [outcome or learned(run) for outcome, run in zip(made, runs, strict=True)]


def _taken(
    there: DistillConfig, splits: Splits, source: Prepared, recipe: Recipe, progress: Progress
) -> Outcome:
    """What a run that has ended holds; nothing is learned."""
    outcome = learn_text(there, splits=splits, prepared=source, progress=progress)
    rate, epochs = outcome.recipe.learning_rate, outcome.recipe.epochs
    if (rate, epochs) != (recipe.learning_rate, recipe.epochs):
        raise UserError(
            f"--runs {there.out}: trained at learning rate {rate:g} for {epochs:g} epochs, this "
            f"comparison at {recipe.learning_rate:g} for {recipe.epochs:g}; give --tune, which "
            f"takes the run's, or --learning-rate {rate:g} --epochs {epochs:g}."
        )
    return outcome


def recipe_of_runs(runs: Sequence[str]) -> Recipe:
    """The recipe that the rows of finished runs were learned for.

    Raises:
        UserError: they were learned for several.
    """
    recipes = {run: recipe_of(read_run(Path(run))) for run in runs}
    first, *others = recipes
    for other in others:
        if recipes[other] != recipes[first]:
            raise UserError(
                f"--runs {first} {other}: learned for two recipes ({recipes[first].describe()}; "
                f"{recipes[other].describe()}); compare them one at a time."
            )
    return recipes[first]


def check_runs(config: CompareConfig) -> dict[str, str]:
    """Refuse finished runs that this comparison cannot take its rows from.

    Returns:
        The SHA-256 of every run's distilled rows.

    Raises:
        UserError: no run folder, one that has not ended, or one of another budget, model, data
            or recipe.
    """
    if config.runs and len(config.budgets) > 1:
        raise UserError("--runs is for one budget: give --budgets that of the runs.")
    for budget in config.sizes:
        for run in config.runs:
            _of_run(config, budget, Path(run))
    return {run: sha256_of(Path(run) / "dataset" / "train.jsonl") for run in config.runs}


def same_runs(folder: RunFolder, runs: dict[str, str]) -> None:
    """Hold the rows of --runs to those that this comparison's cells were made with, if any.

    Raises:
        UserError: other runs, or one that was distilled anew since.
    """
    taken = folder.once("runs", lambda: runs)
    if taken.keys() != runs.keys():
        raise UserError(
            f"--runs {' '.join(runs) or '(none)'}: the distilled rows in {folder.path} are of "
            f"{' '.join(taken) or 'its own distillations'}; give the same, or another --out."
        )
    if anew := [run for run, digest in runs.items() if taken[run] != digest]:
        raise UserError(
            f"--runs {anew[0]}: distilled anew since its rows were taken into {folder.path}; "
            "choose another --out."
        )


def _of_run(config: CompareConfig, budget: Budget, run: Path) -> DistillConfig:
    """The configuration of a distillation that is there, held to the comparison's own."""
    found = read_run(run)
    if found.results is None:
        raise UserError(f"--runs {run}: has not ended; run its `nacd distill` again first.")
    there = replace(from_dict(DistillConfig, found.config, str(run / "run.yaml")), out=run)
    now = config.distillation(budget, 0)
    found_anew = {"recipe.learning_rate"}  # `_taken` holds what was found to what is used here
    if there.tune or config.tune:
        found_anew.add("recipe.epochs")
    differing = [
        f"  {key}: {old!r} there, {new!r} here"
        for key, old, new in differences(to_dict(there), to_dict(now))
        if key == "budget"
        or (
            key.startswith(("model.", "data.", "recipe."))
            and key not in (*found_anew, *SAID, *ROUNDING)
        )
    ]
    if differing:
        raise UserError(
            f"--runs {run}: not a distillation that can be compared here:\n"
            + "\n".join(differing)
            + "\nGive `nacd compare` that run's flags."
        )
    return there
