"""The rows of a table at one budget: none, random, chosen, distilled, all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nacd.comparison.distilled import last_differs, of_distillation
from nacd.comparison.failures import Failure, failure
from nacd.comparison.labelled import labelled
from nacd.comparison.rowset import RowSet, Training, encoded
from nacd.comparison.table import ORDER
from nacd.config import Budget, with_judge
from nacd.config.compare import DISTILLED, CompareConfig
from nacd.config.recipe import Recipe
from nacd.data.rows import Rows
from nacd.distillation.learn import draw
from nacd.distillation.run import Outcome
from nacd.errors import UserError
from nacd.model.prepare import Prepared
from nacd.selection import METHODS, Rankings, Task, choose_once
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress


def rowsets(
    config: CompareConfig,
    budget: Budget,
    source: Prepared,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
    distil: Callable[[], Sequence[Outcome]],
    rankings: Rankings | None = None,
) -> list[RowSet]:
    """Every row of the table at one budget; one whose rows cannot be had is marked as failed.

    Args:
        config: the grid.
        budget: one of its budgets.
        source: the model that chooses and distils, with its rows.
        recipe: the training at this budget, its learning rate tuned.
        folder: keeps every choice.
        progress: display.
        distil: gives the distillations, once, where a row asks for them.
        rankings: what was ranked for other budgets.
    """
    made: list[RowSet] = []
    rankings = rankings or Rankings()
    outcomes: Sequence[Outcome] | Failure | None = None
    for method in config.methods:
        if method in DISTILLED and outcomes is None:
            try:
                outcomes = distil()
            except Exception as error:  # the other rows go on
                outcomes = failure(error)
        try:
            if method not in DISTILLED:
                made += _plain(config, budget, method, source, recipe, folder, progress, rankings)
            elif isinstance(outcomes, Failure):
                made += [_failed(config, method, outcomes)]
            else:
                made += [of_distillation(config, method, outcomes or (), source)]
        except Exception as error:
            made += [_failed(config, method, failure(error))]
        if made[-1].failed:
            progress.say(f"{method}: failed: {made[-1].failed.why}")
    return made


def beside(outcome: Outcome, methods: Sequence[str]) -> tuple[str, ...]:
    """The rows of the table of one distillation: those asked for, and what they are held against.

    Where the recipe does not shuffle, starting rows and text are shown shuffled too, so that nobody
    takes a lucky order for a better text; the text of the last check is one where it is another.
    """
    found = set(methods)
    if not outcome.recipe.shuffle:
        found |= {f"{name}-shuffled" for name in ("seeds", "text") if name in found}
    if "text" in found and last_differs(outcome):
        found.add("text-last")
    return tuple(name for name in ORDER if name in found)


def _failed(config: CompareConfig, method: str, found: Failure) -> RowSet:
    def none(_: Prepared, __: int) -> Training:
        raise UserError(found.why)

    return RowSet(method, none, config.trainings, failed=found)


def _plain(
    config: CompareConfig,
    budget: Budget,
    method: str,
    source: Prepared,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
    rankings: Rankings,
) -> list[RowSet]:
    """Rows without anything learned: none, random, chosen, all."""
    examples = source.train.examples
    if method == "zero-shot":
        return [RowSet(method, lambda _, __: Training(None), 1)]
    if method == "random":

        def drawn(target: Prepared, seed: int) -> Training:
            rows = draw(source.train, budget, 10_000 + 100 * config.seed + seed)
            return Training(encoded([examples[i] for i in rows], target))

        return [RowSet(method, drawn, config.trainings, 0.0, 0.0)]
    if method == "labelled":
        return [labelled(config, budget, source, folder)]
    if method == "full":
        steps = recipe.total_steps(len(draw(source.train, budget, config.seed)))

        def full(target: Prepared, _: int, steps: int | None = None) -> Training:
            data = Rows.of(target.train.rows, target.model.tokenizer.pad_token_id)
            return Training(data, steps=steps, epochs=None if steps else config.full_epochs)

        equal, epochs = partial(full, steps=steps), config.full_epochs
        return [
            RowSet("full-equal-steps", equal, config.trainings),
            RowSet(
                *("full", full, config.full_trainings),
                label=f"full, {epochs:g} epoch{'s' * (epochs != 1)}",
            ),
        ]
    place = folder.path / "choosing" / str(budget) / method
    progress.say(f"budget {budget}: choosing by {method}")
    selection = with_judge(config.selection, config.data)
    task = Task(source, recipe, selection, config.seed, place, progress, budget)
    name = f"choosing/{budget}/{method}/chosen"
    found = choose_once(folder, name, task, method, "--methods", rankings)
    chosen = [examples[i] for i in found["rows"]]

    def training(target: Prepared, _: int) -> Training:
        return Training(encoded(chosen, target), in_order=METHODS[method].orders)

    return [RowSet(method, training, config.trainings, found["seconds"], found["flops"])]


def tuning_data(
    config: CompareConfig, budget: Budget, target: Prepared, source: Prepared, seed: int
) -> Rows:
    """Random rows on which a target's recipe is tuned."""
    rows = [source.train.examples[i] for i in draw(source.train, budget, seed)]
    return encoded(rows, target)
