"""`nacd distill`: from a data file to distilled text, and its table beside the baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

from nacd.comparison.decision import LABELS, decision, rivals
from nacd.comparison.failures import TRACEBACK, fault_lines
from nacd.comparison.grid import Grid
from nacd.comparison.results import of_run, summary_of
from nacd.comparison.rowsets import beside, rowsets
from nacd.comparison.table import summarise
from nacd.comparison.text import lines
from nacd.config import DistillConfig, decided
from nacd.config.compare import one_cell
from nacd.costs.forecasts import announce, distillation, measured
from nacd.data import Splits, hub_license
from nacd.distillation.learn import Learned, Starts
from nacd.distillation.run import Outcome, learn_text
from nacd.distillation.text import TextRow
from nacd.export import (
    LORA,
    Card,
    DatasetRow,
    read_otherwise,
    render_learned_card,
    shared_name,
    write_dataset,
    write_soft_prompts,
    write_trainers,
)
from nacd.model.prepare import Prepared
from nacd.model.split_files import held_out_line, said_on_card, write_splits
from nacd.report import facts
from nacd.report.page import ReportConfig, write_report
from nacd.report.record import write_records
from nacd.statistics.intervals import few_test_rows
from nacd.store.clock import StageClock
from nacd.store.files import read_json, write_json
from nacd.store.folder import read_run
from nacd.store.processes import first
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress


@dataclass(frozen=True)
class Distilled:
    """What `distill` made."""

    folder: Path
    """The run folder."""
    dataset: Path
    """`dataset/`, which `datasets.load_dataset` reads."""
    report: Path
    """The page that shows the run."""
    rows: int
    tokens_changed: float
    """Share of all learnable tokens that are not the starting rows' any more."""
    table: list[dict[str, Any]]
    """A row a method; empty where nothing was compared."""
    verdict: str
    """The outcome in a plain sentence or two."""
    held_out: str = ""
    """Where the test rows are, and how to measure on them."""
    faults: list[Path] = field(default_factory=list)
    """Tracebacks of the table's trainings that failed by a fault of this program."""


def distill(
    config: DistillConfig, *, splits: Splits | None = None, progress: Progress | None = None
) -> Distilled:
    """Distil a data set to text, and measure it beside the baselines.

    Args:
        config: everything that may be set; see `nacd.config.DistillConfig`.
        splits: rows already in hand, instead of those that the configuration names.
        progress: display.

    Raises:
        UserError: a wrong input; nothing already made is lost.
    """
    progress = progress or Progress()
    config = replace(config, outer=decided(config.outer, config.data))

    def forecast(prepared: Prepared, folder: RunFolder, clock: StageClock) -> None:
        if first(lambda: progress.quiet or (folder.path / "results.json").is_file()):
            return
        with clock.stage("measuring a step"):
            speed = measured(prepared, config.recipe, progress)
        announce(distillation(config, prepared, speed, folder.path), progress)

    outcome = learn_text(config, splits=splits, progress=progress, before=forecast)
    first(lambda: _export_all(config, outcome, progress))
    found, faults = _table(config, outcome, progress) if config.compare else ([], [])
    return first(lambda: _told(config, outcome, found, faults))


def _export_all(config: DistillConfig, outcome: Outcome, progress: Progress) -> None:
    """Write the data set, its files for trainers, and what is known of every row."""
    folder, prepared, starts = outcome.folder, outcome.prepared, outcome.starts
    learned, text = outcome.learned, outcome.text
    write_splits(folder.path, prepared, config.data)
    rows = export(folder, prepared, starts, text, learned, _card(config, outcome))
    write_trainers(
        folder.path / "dataset",
        rows,
        outcome.final,
        config.model,
        max_tokens=config.data.max_tokens,
        seed=config.seed,
    )
    for line in chain.from_iterable(read_otherwise(rows).values()):
        progress.say(line)
    write_records(
        folder.path, prepared, starts, learned, text, outcome.distiller.allowed, config.outer.metric
    )


def _told(
    config: DistillConfig, outcome: Outcome, found: Sequence[dict[str, Any]], faults: list[Path]
) -> Distilled:
    """Write table, verdict and page."""
    folder, prepared, starts = outcome.folder, outcome.prepared, outcome.starts
    learned, text = outcome.learned, outcome.text
    table, held = [*map(_plain, found)], differences(found)
    if table:
        card = replace(_card(config, outcome), results=_shown(table))
        export(folder, prepared, starts, text, learned, card)
    verdict = judge(found, outcome.changed, learned.best_step)
    if table and (few := few_test_rows(len(prepared.report))):
        verdict = f"{verdict} {few}"
    write_json(
        folder.path / "results.json",
        {
            "verdict": verdict,
            "table": table,
            "differences": held,
            "tokens_changed": outcome.changed,
            "sizes": prepared.sizes,
            "template": prepared.template.describe(),
        },
    )
    report = write_report(ReportConfig(folder.path))
    return Distilled(
        folder.path,
        folder.path / "dataset",
        report,
        len(starts.rows),
        outcome.changed,
        table,
        verdict,
        held_out_line(folder.path, prepared, config.data),
        faults,
    )


def _card(config: DistillConfig, outcome: Outcome) -> Card:
    provenance = read_json(outcome.folder.path / "provenance.json")
    return Card(
        data=shared_name(config.data.data),
        data_rows=len(outcome.prepared.train),
        model=shared_name(config.model.model),
        template=outcome.prepared.template.describe(),
        recipe=outcome.final,
        projection=config.outer.projection,
        lora={name: getattr(config.model, name) for name in LORA},
        max_tokens=config.data.max_tokens,
        settings={
            "objective": config.outer.objective,
            "outer steps": config.outer.outer_steps,
            "recipe": outcome.found_by,
            "learnable positions": config.outer.learn,
            "exported outer step": outcome.learned.best_step,
            "seed": config.seed,
            "starting rows chosen by": config.start_by,
            "LoRA rank": config.model.lora_rank,
            "LoRA alpha": config.model.lora_alpha,
            "LoRA targets": " ".join(config.model.lora_targets),
            "tokens changed": f"{outcome.changed:.1%}",
            "learning seconds": round(outcome.learned.seconds),
            **said_on_card(outcome.prepared),
        },
        license=config.data.license or hub_license(config.data.data),
        language=config.data.language,
        provenance=provenance,
    )


def _table(
    config: DistillConfig, outcome: Outcome, progress: Progress
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Every row of the table, trained and measured, and the tracebacks of faults of this program.

    It is a comparison of one target model and budget.
    """
    prepared, folder = outcome.prepared, outcome.folder
    one = one_cell(config, outcome.recipe, beside(outcome, config.compare))
    model, budget = config.model.model, config.size
    sets = rowsets(one, budget, prepared, one.recipe, folder, progress, lambda: [outcome])
    grid = Grid(one, folder, prepared, model, budget, one.recipe, alone=True)
    cells: list[dict[str, Any]] = []
    with outcome.clock.stage("training and measuring the table"):
        grid.run(sets, progress, cells.extend)
    labels = {s.method: s.label or LABELS.get(s.method, s.method) for s in sets}
    table = [row | {"label": labels[row["method"]]} for row in summarise(cells)]
    places = (folder.path / grid.place(cell["method"], cell["seed"]) / TRACEBACK for cell in cells)
    return table, [place for place in places if place.is_file()]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as `results.json` of a run has it: its difference from the starting rows a number."""
    left_out = ("target", "budget", "best")
    own = {k: x for k, x in row.items() if not k.startswith("minus_") and k not in left_out}
    figures = ("report_nll", "sd", "rows", "tokens", "steps", "tokens_changed")
    none = dict.fromkeys(figures) | {"trainings": row.get("failed", 0), "diverged": 0}
    held = row.get("minus_seeds") if row["method"] != "zero-shot" else None
    if held:
        own["minus_seeds"] = held["mean"]
    if held and held["over_trainings"] is not None:
        own["minus_seeds_95"] = held["over_trainings"]
    return none | own


def export(
    folder: RunFolder,
    prepared: Prepared,
    starts: Starts,
    text: Sequence[TextRow],
    learned: Learned,
    card: Card,
) -> list[DatasetRow]:
    """Write `dataset/` and `soft_prompts.safetensors`; returns the rows."""
    rows = []
    for row, seed in zip(text, starts.examples, strict=True):
        written = prepared.template.row(row.example)
        rows.append(
            DatasetRow(
                written["prompt"],
                written["completion"],
                shared_name(seed.source),
                seed.digest,
                row.changed,
            )
        )
    write_dataset(folder.path / "dataset", rows, render_learned_card(card, rows))
    write_soft_prompts(
        folder.path / "soft_prompts.safetensors",
        learned.soft,
        starts.pseudo.slots,
        [seed.digest for seed in starts.examples],
        {
            "model": card.model,
            "template": json.dumps(dict(card.template)),
            "learning_rate": f"{learned.soft_learning_rate:.9g}",
            "outer_step": str(learned.soft_step),
        },
    )
    return rows


_SIZES = ("rows", "tokens", "steps")


def _shown(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table's columns that the data card shows."""
    shown = []
    for row in table:
        against = f"{row['minus_seeds']:+.3f}" if "minus_seeds" in row else ""
        if "minus_seeds_95" in row:
            against += f" ± {row['minus_seeds_95']:.3f}"
        shown.append(
            {
                "method": row["label"],
                "test NLL per token": "none"
                if row["report_nll"] is None
                else round(row["report_nll"], 3),
                "minus starting rows (95 %)": against,
                "trainings": row["trainings"],
                **{name: "" if row[name] is None else row[name] for name in _SIZES},
            }
        )
    return shown


def differences(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every row of the table minus random rows and the starting rows, as `nacd compare` has them.

    Args:
        table: its rows; one without a figure has no difference.
    """
    return {
        row["method"]: {
            rival: row[f"minus_{rival}"]
            for rival in ("random", "seeds", "seeds-shuffled")
            if row.get(f"minus_{rival}")
        }
        for row in table
        if row.get("report_nll") is not None and row["method"] != "zero-shot"
    }


def judge(table: Sequence[Mapping[str, Any]], changed: float, best_step: int) -> str:
    """What to do with the distilled rows, against what, and the figures: one sentence.

    Args:
        table: its rows.
        changed: share of the learnable tokens that were changed.
        best_step: outer step of the exported text.
    """
    if best_step == 0 or changed == 0.0:
        return (
            "The exported rows are the starting rows, word for word: no distilled text was better "
            "than them on the validation rows."
        )
    made = [row for row in table if row.get("report_nll") is not None]
    text = next((row for row in made if row["method"] == "text"), {})
    if rivals(text):
        return decision(made)
    failed = [row["label"] for row in table if row not in made]
    why = f" (trainings failed: {', '.join(failed)})" if failed else ""
    return (
        f"Compare the distilled rows before you use them: the text of outer step {best_step} was "
        f"best on the validation rows ({changed:.1%} of learnable tokens changed), but was held "
        f"against no real rows on test rows{why}."
    )


def print_result(result: Distilled, progress: Progress) -> None:
    """The table, what weakens it, the paths, and what to do, for the end of a run."""
    if result.table:
        progress.say("")
        progress.say("Held-out response NLL per token (nats; lower is better)")
        run = read_run(result.folder)
        for line in lines(summary_of(run)):
            progress.say(line)
        progress.say("")
        for title, text in facts.warnings(run, of_run(run)):
            for line in wrap(f"{title} {text}", 80):
                progress.say(line)
        progress.say("")
    for line in fault_lines(result.faults):
        progress.say(line)
    progress.say(f"{result.rows} rows: {result.dataset / 'train.jsonl'}")
    progress.say(result.held_out)
    progress.say(f"report: {result.report}")
    for line in wrap(result.verdict, 80):
        progress.say(line)
