"""`nacd compare`: methods x budgets x target models x trainings, cell by cell, and one table.

    run.yaml                                    the grid
    choosing/<budget>/<method>/                 what `nacd select` would keep
    distilled/<budget>-<number>/                a run folder of `nacd distill`, without a table
    cells/<target>/<budget>/<method>/<seed>/    one training: result.json, or failed.json
    results.parquet, results.json, report.html  all cells; the table; the page

A cell that fails is kept as failed and the others go on (`nacd.comparison.failures`); the same
command again tries it anew. Table and page are written after every row, and say how many of the
trainings they count. They hold what earlier calls have left in the folder too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nacd.comparison.cost import forecast
from nacd.comparison.decision import comparison_lines, decided_lines
from nacd.comparison.failures import Failure, failure, fault_lines, keep_failure
from nacd.comparison.finished import check_runs, distilled, recipe_of_runs, same_runs
from nacd.comparison.grid import Grid, Keep, cell_folder, folder_name
from nacd.comparison.kept import Kept
from nacd.comparison.rowset import RowSet
from nacd.comparison.rowsets import rowsets, tuning_data
from nacd.config import Budget, decided
from nacd.config.commands import ReportConfig
from nacd.config.compare import DISTILLED, FREE, CompareConfig
from nacd.config.recipe import Recipe
from nacd.costs.costs import measure
from nacd.costs.forecasts import go_ahead
from nacd.data import Encoded, Example, Splits, encode_all, make_template, read_examples
from nacd.data.overlap import overlapping, row_text
from nacd.distillation.learn import draw
from nacd.distillation.run import Outcome
from nacd.distillation.stages import OLD_RATES, found_recipe, open_run, tuned
from nacd.errors import UserError
from nacd.model.lora import check_ids
from nacd.model.prepare import Prepared, prepare, read_splits
from nacd.model.split_files import held_out_line, write_splits
from nacd.report.page import write_report
from nacd.selection import Rankings
from nacd.store.files import read_json
from nacd.store.processes import first
from nacd.store.run import RunFolder, settings
from nacd.terminal.progress import Progress
from nacd.training.halving import TRAININGS
from nacd.training.tuning import TUNING_DRAWS


@dataclass(frozen=True)
class Compared:
    """What `compare` found."""

    folder: Path
    table: list[dict[str, Any]]
    """A summary for every target, budget and row."""
    overlap: list[dict[str, Any]]
    """Training rows that share 13 words with test rows."""
    report: Path
    """The page that shows all of it."""
    faults: list[Path]
    """Tracebacks of this call's trainings that failed by a fault of this program."""
    held_out: str = ""
    """Where the test rows are, and how to measure on them."""


def compare(
    config: CompareConfig, *, splits: Splits | None = None, progress: Progress | None = None
) -> Compared:
    """Train every target model on every method's rows, and compare what they learned.

    Args:
        config: the grid.
        splits: rows already in hand, instead of those that the configuration names.
        progress: display.

    Raises:
        UserError: a wrong input; cells already made are kept.
    """
    progress = progress or Progress()
    config.check()
    config = replace(config, outer=decided(config.outer, config.data))
    if config.tune_rates:
        progress.say(OLD_RATES)
    runs = check_runs(config)
    elsewhere = _elsewhere(config) if config.elsewhere else []
    splits = read_splits(config.data) if splits is None else splits
    folder = open_run(config, splits, free=FREE, alone=False)  # several may fill one grid
    source = prepare(config.model, config.data, progress.say, splits, folder.memory)
    if config.accuracy and any(e.choices is None for e in source.report.examples):
        raise UserError(
            f"--accuracy {' '.join(config.accuracy)}: the test rows are no multiple-choice "
            "questions; drop the flag."
        )
    shared = folder.once("overlap", lambda: {"rows": _overlap(source)})["rows"]
    if shared:
        progress.say(
            f"{len(shared)} training rows share 13 words with a report row, the first "
            f"{shared[0]['train']}; overlap.json names them all"
        )
    if any(method in DISTILLED for method in config.methods):
        same_runs(folder, runs)
    _check_trainings(config, source)
    others = _encoded(elsewhere, config, source, progress)
    _say_cost(config, source, splits, others, progress)
    recipes = {b: _recipe(config, b, source, source, folder, progress) for b in config.sizes}

    def distil(budget: Budget) -> list[Outcome]:
        progress.say(f"budget {budget}: distilling")
        return distilled(config, budget, source, splits, recipes[budget], folder, progress)

    rankings = Rankings()  # of all budgets
    sets = {
        budget: rowsets(
            *(config, budget, source, recipes[budget], folder, progress),
            partial(distil, budget),
            rankings,
        )
        for budget in config.sizes
    }
    del rankings
    asked = {
        (target, str(budget), rowset.method, seed)
        for target in (config.model.model, *config.target_models)
        for budget in config.sizes
        for rowset in sets[budget]
        for seed in range(rowset.trainings)
        if target == config.model.model or not rowset.source_only
    }
    kept = Kept(folder.path, source.sizes, asked, lambda place: write_report(ReportConfig(place)))
    for budget in config.sizes:
        grid = Grid(config, folder, source, config.model.model, budget, recipes[budget], others)
        grid.run(sets[budget], progress, kept.add)
    for target in config.target_models:
        progress.say(f"target model {target}")
        _of_target(target, config, source, splits, sets, elsewhere, folder, progress, kept.add)
    write_splits(folder.path, source, config.data)
    line = held_out_line(folder.path, source, config.data)
    return first(
        lambda: Compared(folder.path, kept.table(), shared, kept.write(), kept.faults(), line)
    )


def _check_trainings(config: CompareConfig, source: Prepared) -> None:
    """Refuse trainings that their warm-up would keep at a learning rate of 0.

    Raises:
        UserError: on a budget's rows, or on the full data; the flags are named.
    """
    if set(config.methods) <= {"zero-shot"}:
        return
    for budget in config.sizes:
        config.recipe.check_rows(len(draw(source.train, budget, config.seed)))
    if {"full", "labelled"} & {*config.methods}:
        full = replace(config.recipe, steps=0, epochs=config.full_epochs)
        full.check_rows(len(source.train), epochs="--full-epochs")


def _elsewhere(config: CompareConfig) -> Sequence[Example]:
    data = config.data
    return read_examples(
        config.elsewhere,
        answers=data.answers,
        ignore_columns=data.ignore_columns,
        flag="--elsewhere",
    )


def _of_target(
    target: str,
    config: CompareConfig,
    source: Prepared,
    splits: Splits,
    sets: Mapping[Budget, Sequence[RowSet]],
    elsewhere: Sequence[Example],
    folder: RunFolder,
    progress: Progress,
    keep: Keep,
) -> None:
    """The cells of a further model; all of them failed where it cannot be used."""
    own = {b: [s for s in sets[b] if not s.source_only] for b in config.sizes}

    def failed(budget: Budget, found: Failure) -> None:
        progress.say(f"{target}, budget {budget}: failed: {found.why}")
        for rowset in own[budget]:
            cells = []
            for seed in range(rowset.trainings):
                place = folder.path / cell_folder(target, str(budget), rowset.method, seed)
                if not (place / "result.json").is_file():  # an earlier call's result stays
                    names = {"target": target, "budget": str(budget), "method": rowset.method}
                    cells.append(keep_failure(place, names | {"seed": seed}, found))
            keep(cells)

    try:
        model = replace(config.model, model=target)
        prepared = prepare(model, config.data, progress.say, splits, folder.memory)
        others = _encoded(elsewhere, config, prepared, progress)
    except Exception as error:  # shown as failed; the other models go on
        for budget in own:
            failed(budget, failure(error))
        return
    for budget, mine in own.items():
        try:
            recipe = _recipe(config, budget, prepared, source, folder, progress)
        except Exception as error:  # the other budgets go on
            failed(budget, failure(error))
        else:
            grid = Grid(config, folder, prepared, target, budget, recipe, others)
            grid.run(mine, progress, keep)


def _encoded(
    examples: Sequence[Example], config: CompareConfig, target: Prepared, progress: Progress
) -> Sequence[Encoded]:
    """The rows of --elsewhere, in the form that is natural to them."""
    if not examples:
        return []
    template = make_template("auto", target.model.tokenizer, examples)
    rows, kept, dropped = encode_all(template, examples, config.data.max_tokens, "--elsewhere")
    check_ids(target.model, rows, kept)
    if dropped.message:
        progress.say(f"elsewhere: {dropped.message}")
    return rows


def _overlap(source: Prepared) -> list[dict[str, Any]]:
    report = source.report.examples
    return [
        {
            "train": source.train.examples[row].source,
            "report": [report[other].source for other in others[:3]],
            "of": len(others),
        }
        for row, others in overlapping(
            map(row_text, source.train.examples), [row_text(e) for e in report]
        )
    ]


def _say_cost(
    config: CompareConfig,
    source: Prepared,
    splits: Splits,
    elsewhere: Sequence[Encoded],
    progress: Progress,
) -> None:
    """Say what the grid takes; a target model that cannot be used takes nothing."""
    speeds = {config.model.model: _speed(source, config.recipe)}
    for target in config.target_models:
        try:
            other = prepare(replace(config.model, model=target), config.data, splits=splits)
            speeds[target] = _speed(other, config.recipe)
        except Exception as error:  # its cells will be shown as failed
            progress.say(f"target model {target} cannot be used: {failure(error).why}")
    found = forecast(config, source, speeds, config.recipe, elsewhere, config.out)
    for line in found.describe().splitlines():
        progress.say(line)
    go_ahead(found.seconds, progress)


def _speed(prepared: Prepared, recipe: Recipe) -> float:
    return measure(prepared.model, prepared.train.rows, recipe).step


def _recipe(
    config: CompareConfig,
    budget: Budget,
    target: Prepared,
    source: Prepared,
    folder: RunFolder,
    progress: Progress,
) -> Recipe:
    """The recipe of one target and budget, tuned on validation rows where that is asked for."""
    name = f"tuning/{folder_name(target.model.config.model)}-{budget}"
    if config.tune and config.runs and target is source:
        return recipe_of_runs(config.runs)
    if config.tune:
        progress.say(f"{budget}, {Path(target.model.config.model).name}:")
        seeds = [TUNING_DRAWS + 100 * config.seed + number for number in range(TRAININGS)]
        sets = [tuning_data(config, budget, target, source, seed).rows for seed in seeds]
        return found_recipe(config.recipe, target, sets, folder, progress, name)[0]
    if not config.tune_rates:
        return config.recipe
    data = tuning_data(config, budget, target, source, config.seed)
    found = tuned(config.recipe, config.tune_rates, target, data, folder, name)
    progress.say(f"{budget}: learning rate {found['learning_rate']:g}")
    return replace(config.recipe, learning_rate=found["learning_rate"])


def print_comparison(result: Compared, say: Callable[[str], None]) -> None:
    """The table, what weakens it, the paths, and, last, what to do."""
    say("")
    say("Held-out response NLL per token (nats; lower is better; not comparable across models)")
    config, sizes = settings(result.folder), read_json(result.folder / "results.json")["sizes"]
    for line in comparison_lines(result.table, sizes, config):
        say(line)
    say("")
    for line in fault_lines(result.faults):
        say(line)
    say(f"cells: {result.folder / 'results.parquet'}")
    say(result.held_out)
    say(f"report: {result.report}")
    for line in decided_lines(result.table):
        say(line)
