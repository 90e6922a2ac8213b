"""`nacd compare`: methods x budgets x target models x seeds, cell by cell, and one table.

    run.yaml                                    the grid
    choosing/<budget>/<method>/                 what `nacd select` would keep
    distilled/<budget>-<number>/                a run folder of `nacd distill`, without a table
    cells/<target>/<budget>/<method>/<seed>/    one training: result.json, or failed.json
    results.parquet, results.json, report.html  all cells; the table; the page

A cell that fails is kept as failed and the others go on; the same command again tries it anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nacd.comparison.config import FREE, ROWS, CompareConfig
from nacd.comparison.cost import forecast, seconds_per_token
from nacd.comparison.rowsets import (
    RowSet,
    Training,
    check_runs,
    of_training,
    reason,
    rowsets,
    tuning_data,
)
from nacd.comparison.table import lines, summarise, write_parquet
from nacd.data import Encoded, Example, Splits, encode_all, make_template, read_examples
from nacd.errors import UserError
from nacd.evaluation import choice_accuracy, response_nll
from nacd.files import write_json
from nacd.overlap import overlapping, row_text
from nacd.prepare import Prepared, prepare, read_splits
from nacd.progress import Progress
from nacd.recipe import Recipe
from nacd.report.page import ReportConfig, write_report
from nacd.run import RunFolder
from nacd.stages import open_run, tuned
from nacd.student import train_student, visited

ORDER = (*ROWS[:-1], "full-equal-steps", "full")


@dataclass(frozen=True)
class Compared:
    """What `compare` found."""

    folder: Path
    table: list[dict[str, Any]]
    """A summary for every target, budget and row."""
    overlap: list[dict[str, Any]]
    """Training rows that share 13 words with report rows."""
    report: Path
    """The page that shows all of it."""


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
    check_runs(config)
    elsewhere = read_examples(config.elsewhere, flag="--elsewhere") if config.elsewhere else []
    splits = read_splits(config.data) if splits is None else splits
    folder = open_run(config, splits, free=FREE)
    source = prepare(config.model, config.data, progress.say, splits)
    if config.accuracy and any(e.choices is None for e in source.report.examples):
        raise UserError(
            f"--accuracy {' '.join(config.accuracy)}: the report rows are no multiple-choice "
            "questions; drop the flag."
        )
    shared = folder.once("overlap", lambda: {"rows": _overlap(source)})["rows"]
    if shared:
        progress.say(
            f"{len(shared)} training rows share 13 words with a report row, the first "
            f"{shared[0]['train']}; overlap.json names them all"
        )
    others = _encoded(elsewhere, config, source, progress)
    _say_cost(config, source, splits, others, progress)
    recipes = {b: _recipe(config, b, source, source, folder, progress) for b in config.budgets}
    sets = {
        budget: rowsets(config, budget, source, splits, recipes[budget], folder, progress)
        for budget in config.budgets
    }
    cells: list[dict[str, Any]] = []
    for budget in config.budgets:
        grid = Grid(config, folder, source, config.model.model, budget, recipes[budget], others)
        cells += grid.run(sets[budget], progress)
    for target in config.target_models:
        progress.say(f"target model {target}")
        cells += _of_target(target, config, source, splits, sets, elsewhere, folder, progress)
    table = summarise(cells, ORDER)
    write_parquet(cells, folder.path / "results.parquet")
    write_json(folder.path / "results.json", {"table": table, "sizes": source.sizes})
    return Compared(folder.path, table, shared, write_report(ReportConfig(folder.path)))


def _of_target(
    target: str,
    config: CompareConfig,
    source: Prepared,
    splits: Splits,
    sets: Mapping[str, Sequence[RowSet]],
    elsewhere: Sequence[Example],
    folder: RunFolder,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The cells of a further model; all of them failed where it cannot be used."""
    own = {b: [s for s in sets[b] if not s.source_only] for b in config.budgets}

    def failed(budget: str, error: Exception) -> list[dict[str, Any]]:
        about = {"target": target, "budget": budget, "failed": reason(error)}
        progress.say(f"{target}, budget {budget}: failed: {about['failed']}")
        return [
            about | {"method": s.method, "seed": n} for s in own[budget] for n in range(s.trainings)
        ]

    try:
        model = replace(config.model, model=target)
        prepared = prepare(model, config.data, progress.say, splits)
        others = _encoded(elsewhere, config, prepared, progress)
    except Exception as error:  # shown as failed; the other models go on
        return [cell for budget in own for cell in failed(budget, error)]
    cells: list[dict[str, Any]] = []
    for budget, mine in own.items():
        try:
            recipe = _recipe(config, budget, prepared, source, folder, progress)
        except Exception as error:
            cells += failed(budget, error)
        else:
            grid = Grid(config, folder, prepared, target, budget, recipe, others)
            cells += grid.run(mine, progress)
    return cells


def _encoded(
    examples: Sequence[Example], config: CompareConfig, target: Prepared, progress: Progress
) -> list[Encoded]:
    """The rows of --elsewhere, in the form that is natural to them."""
    if not examples:
        return []
    template = make_template("auto", target.model.tokenizer, examples)
    rows, _, dropped = encode_all(template, examples, config.data.max_tokens, "--elsewhere")
    if dropped.message:
        progress.say(f"elsewhere: {dropped.message}")
    return rows


def _overlap(source: Prepared) -> list[dict[str, Any]]:
    report = source.report.examples
    return [
        {
            "train": source.train.examples[row].source,
            "report": [report[other].source for other in others],
        }
        for row, others in overlapping(
            [row_text(e) for e in source.train.examples], [row_text(e) for e in report]
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
    speeds = {config.model.model: seconds_per_token(source, config.recipe)}
    for target in config.target_models:
        try:
            other = prepare(replace(config.model, model=target), config.data, splits=splits)
            speeds[target] = seconds_per_token(other, config.recipe)
        except Exception as error:  # its cells will be shown as failed
            progress.say(f"target model {target} cannot be used: {reason(error)}")
    for line in forecast(config, source, speeds, config.recipe, elsewhere).describe().splitlines():
        progress.say(line)


def _recipe(
    config: CompareConfig,
    budget: str,
    target: Prepared,
    source: Prepared,
    folder: RunFolder,
    progress: Progress,
) -> Recipe:
    """The recipe of one target and budget, its learning rate tuned on development rows."""
    if not config.tune_rates:
        return config.recipe
    data = tuning_data(config, budget, target, source)
    name = f"tuning/{folder_name(target.model.config.model)}-{budget}"
    found = tuned(config.recipe, config.tune_rates, target, data, folder, name)
    progress.say(f"{budget}: learning rate {found['learning_rate']:g}")
    return replace(config.recipe, learning_rate=found["learning_rate"])


def folder_name(model: str) -> str:
    """A model's name as that of a folder: its last part, and a hash that tells paths apart."""
    digest = hashlib.sha256(model.encode()).hexdigest()[:6]
    last = Path(model).name
    return last if last == model else f"{last}-{digest}"


@dataclass(frozen=True)
class Grid:
    """The cells of one target model and budget."""

    config: CompareConfig
    folder: RunFolder
    prepared: Prepared
    target: str
    budget: str
    recipe: Recipe
    elsewhere: Sequence[Encoded] = ()
    """Rows of other data that every trained model is measured on too."""

    def run(self, sets: list[RowSet], progress: Progress) -> list[dict[str, Any]]:
        """Every cell, made or read."""
        work = [(rowset, seed) for rowset in sets for seed in range(rowset.trainings)]
        made: dict[str, dict[str, Any]] = {}
        cells = []
        name = f"{Path(self.target).name} {self.budget}"
        with progress.stage(name, len(work)) as tick:
            for done, (rowset, seed) in enumerate(work, 1):
                cell = self._cell(rowset, seed, made)
                cells.append(cell)
                tick(done, cell.get("report_nll", float("nan")))
        return cells

    def _cell(self, rowset: RowSet, seed: int, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
        place = f"cells/{folder_name(self.target)}/{self.budget}/{rowset.method}/{seed}"
        key = {
            "target": self.target,
            "budget": self.budget,
            "method": rowset.method,
            "seed": seed,
        }
        failed = self.folder.path / place / "failed.json"

        answers = rowset.method in self.config.accuracy

        def make() -> dict[str, Any]:
            return self._measure(rowset.training(self.prepared, seed), seed, made, answers)

        try:
            cell = self.folder.once(f"{place}/result", make)
        except Exception as error:  # kept, shown, and tried again next time
            write_json(failed, key | {"failed": reason(error)})
            return key | {"failed": reason(error)}
        failed.unlink(missing_ok=True)
        made.setdefault(cell["content"], cell)
        missing = self._missing(cell, answers)
        if missing:  # asked for after the cell was made
            theta, _, _ = self._train(rowset.training(self.prepared, seed), seed)
            cell = cell | {name: measure(theta) for name, measure in missing.items()}
            write_json(self.folder.path / place / "result.json", cell)
        cost = {
            "choosing_seconds": rowset.choosing_seconds,
            "choosing_flops": rowset.choosing_flops,
        }
        return key | cell | cost

    def _train(self, training: Training, seed: int) -> tuple[Any, int, Recipe]:
        recipe = of_training(self.recipe, training)
        if training.data is None:
            return self.prepared.model.zero_theta(), 0, recipe
        steps = training.steps or recipe.total_steps(len(training.data.rows))
        theta = train_student(
            self.prepared.model,
            recipe,
            training.data,
            seed,
            vectors=training.vectors,
            steps=steps,
        )
        return theta, steps, recipe

    def _measure(
        self, training: Training, seed: int, made: dict[str, dict[str, Any]], answers: bool
    ) -> dict[str, Any]:
        """Train and measure, or take over the result of a training that is the same."""
        content = self._content(training, seed)
        about = {
            "tokens_changed": training.tokens_changed,
            "boundaries_kept": training.boundaries_kept,
        }
        if content in made:
            return made[content] | about
        began = time.perf_counter()
        theta, steps, recipe = self._train(training, seed)
        trained = time.perf_counter() - began
        found = response_nll(self.prepared.model, theta, self.prepared.report.rows)
        rows, tokens = 0, 0
        if training.data is not None:
            rows, tokens = visited(training.data, recipe, steps, seed)
        return about | {
            "report_nll": found.mean,
            "rows": rows,
            "tokens": tokens,
            "steps": steps,
            "learning_rate": recipe.learning_rate,
            "training_seconds": trained,
            "content": content,
            "template": self.prepared.template.name,
            "row_nll": [round(float(x), 5) for x in found.nll],
            "row_tokens": [int(n) for n in found.tokens],
            "accuracy": self._accuracy(theta) if answers else None,
            "elsewhere": self._harm(theta) if self.elsewhere else None,
        }

    def _missing(
        self, cell: dict[str, Any], answers: bool
    ) -> dict[str, Callable[[Any], dict[str, Any]]]:
        """What a cell is to be measured by, and is not yet."""
        missing: dict[str, Callable[[Any], dict[str, Any]]] = {}
        if answers and not cell.get("accuracy"):
            missing["accuracy"] = self._accuracy
        known = (cell.get("elsewhere") or {}).get("data")
        if self.elsewhere and known != self.config.elsewhere:
            missing["elsewhere"] = self._harm
        return missing

    def _harm(self, theta: Any) -> dict[str, Any]:
        """Response NLL on other data than what was trained for."""
        found = response_nll(self.prepared.model, theta, list(self.elsewhere))
        return {"data": self.config.elsewhere, "nll": found.mean, "rows": len(self.elsewhere)}

    def _accuracy(self, theta: Any) -> dict[str, Any]:
        """Accuracy on the report questions, with what it depends on."""
        found = choice_accuracy(
            self.prepared.model,
            theta,
            self.prepared.report.examples,
            template=self.prepared.template,
            task="report rows",
        )
        return {
            "acc": found.acc,
            "acc_norm": found.acc_norm,
            "n": found.n,
            "shots": found.shots,
            "lm_eval": found.lm_eval,
            "correct": [*found.correct],
        }

    def _content(self, training: Training, seed: int) -> str:
        """A hash of all that a training depends on but the model."""
        rows = [] if training.data is None else [row.ids for row in training.data.rows]
        recipe = of_training(self.recipe, training)
        text = json.dumps([rows, seed, training.steps, repr(recipe)])
        digest = hashlib.sha256(text.encode())
        if training.vectors is not None:
            digest.update(training.vectors.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def print_comparison(result: Compared, say: Callable[[str], None]) -> None:
    """The table and the paths."""
    say("")
    say("Held-out response NLL per token (nats; lower is better; not comparable across models)")
    for line in lines(result.table):
        say(line)
    say("")
    say(f"cells: {result.folder / 'results.parquet'}")
    say(f"report: {result.report}")
