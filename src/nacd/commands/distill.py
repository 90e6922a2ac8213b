"""`nacd distill`: from a data file to distilled text, and its table beside the baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

from nacd.comparison.decision import called
from nacd.comparison.ladder import climb, entries_for, lines
from nacd.comparison.rungs import rungs
from nacd.comparison.table import Cell, difference
from nacd.config import DistillConfig, decided
from nacd.costs.forecasts import announce, distillation, measured
from nacd.data import Splits, hub_license
from nacd.data.rows import Rows
from nacd.distillation.learn import Learned, Seeds, draw
from nacd.distillation.run import Outcome, learn_text
from nacd.distillation.text import TextRow, share_changed
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
from nacd.statistics.verdict import Rival, decide, read_difference
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
    table = _table(config, outcome, progress) if config.compare else []
    return first(lambda: _told(config, outcome, table))


def _export_all(config: DistillConfig, outcome: Outcome, progress: Progress) -> None:
    """Write the data set, its files for trainers, and what is known of every row."""
    folder, prepared, seeds = outcome.folder, outcome.prepared, outcome.seeds
    learned, text = outcome.learned, outcome.text
    write_splits(folder.path, prepared, config.data)
    rows = export(folder, prepared, seeds, text, learned, _card(config, outcome))
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
        folder.path, prepared, seeds, learned, text, outcome.distiller.allowed, config.outer.metric
    )


def _told(config: DistillConfig, outcome: Outcome, table: list[dict[str, Any]]) -> Distilled:
    """Write table, verdict and page."""
    folder, prepared, seeds = outcome.folder, outcome.prepared, outcome.seeds
    learned, text = outcome.learned, outcome.text
    if table:
        card = replace(_card(config, outcome), results=_shown(table))
        export(folder, prepared, seeds, text, learned, card)
    tokens = [row.response_tokens for row in prepared.report.rows]
    held = differences(table, read_run(folder.path).cells, tokens)
    verdict = judge(table, outcome.changed, learned, held)
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
        len(seeds.rows),
        outcome.changed,
        table,
        verdict,
        held_out_line(folder.path, prepared, config.data),
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


def _table(config: DistillConfig, outcome: Outcome, progress: Progress) -> list[dict[str, Any]]:
    """Every row of the ladder, trained and measured."""
    prepared, seeds, distiller = outcome.prepared, outcome.seeds, outcome.distiller
    learned = outcome.learned
    last = distiller.text(learned.last_ids)
    train, encode = prepared.train, prepared.template.as_exported

    def draws(seed: int) -> Rows:
        drawn = draw(train, config.budget, 10_000 + 100 * config.seed + seed)
        rows = [encode(train.examples[i]) for i in drawn]
        return Rows.of(rows, seeds.pseudo.pad_id)

    entries = entries_for(
        config.compare,
        draws=draws,
        seeds=seeds.untouched,
        learnable=seeds.pseudo,
        allowed=distiller.allowed,
        soft=learned.soft.to(prepared.model.device),
        soft_rate=learned.soft_learning_rate,
        soft_step=learned.soft_step,
        text=distiller.settled(outcome.text),
        text_changed=outcome.changed,
        text_rate=learned.learning_rate,
        last=distiller.settled(last),
        last_changed=share_changed(seeds.pseudo, last),
        last_rate=learned.last_learning_rate,
        full=Rows.of(train.rows, seeds.pseudo.pad_id),
        recipe=outcome.recipe,
        full_epochs=config.full_epochs,
    )
    with outcome.clock.stage("training and measuring the table"):
        return climb(
            prepared.model,
            outcome.recipe,
            entries,
            prepared.report,
            config.trainings,
            outcome.folder,
            progress,
        )


def export(
    folder: RunFolder,
    prepared: Prepared,
    seeds: Seeds,
    text: Sequence[TextRow],
    learned: Learned,
    card: Card,
) -> list[DatasetRow]:
    """Write `dataset/` and `soft_prompts.safetensors`; returns the rows."""
    rows = []
    for row, seed in zip(text, seeds.examples, strict=True):
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
        seeds.pseudo.slots,
        [seed.digest for seed in seeds.examples],
        {
            "model": card.model,
            "template": json.dumps(dict(card.template)),
            "learning_rate": f"{learned.soft_learning_rate:.9g}",
            "outer_step": str(learned.soft_step),
        },
    )
    return rows


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
                "test NLL per token": "diverged"
                if row["report_nll"] is None
                else round(row["report_nll"], 3),
                "minus starting rows (95 %)": against,
                "trainings": row["trainings"],
                "rows": row["rows"],
                "tokens": row["tokens"],
                "steps": row["steps"],
            }
        )
    return shown


def differences(
    table: Sequence[dict[str, Any]], cells: Mapping[str, Sequence[Cell]], tokens: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Every row of the table minus random rows and the starting rows, as `nacd compare` has them.

    Args:
        table: its rows; one of which a training diverged has no difference.
        cells: the trainings of each, in the order of their seeds.
        tokens: response tokens of every test row.
    """
    made = {
        row["method"]: [
            {**cell, "row_tokens": tokens} for cell in cells[row["method"]][: row["trainings"]]
        ]
        for row in table
        if row["report_nll"] is not None and row["method"] in cells
    }
    return {
        method: {
            rival: difference(own, made[rival])
            for rival in ("random", "seeds", "seeds-shuffled")
            if rival in made and rival != method
        }
        for method, own in made.items()
        if method != "zero-shot"
    }


def judge(
    table: Sequence[dict[str, Any]],
    changed: float,
    learned: Learned,
    held: Mapping[str, Mapping[str, Any]],
) -> str:
    """What to do with the distilled rows, against what, and the figures: one sentence.

    Args:
        table: its rows.
        changed: share of the learnable tokens that were changed.
        learned: what the outer loop left.
        held: as `differences` gives it.
    """
    if learned.best_step == 0 or changed == 0.0:
        return (
            "The exported rows are the starting rows, word for word: no distilled text was better "
            "than them on the validation rows."
        )
    own = {name: read_difference(kept) for name, kept in held.get("text", {}).items()}
    rivals = [Rival(called(name), found) for name, found in own.items() if found is not None]
    plain, shuffled = own.get("seeds"), own.get("seeds-shuffled")
    if plain and shuffled and plain.mean >= shuffled.mean:  # their own order is no unlucky one
        rivals = rivals[:-1]
    if not rivals:
        diverged = [row["label"] for row in table if row["report_nll"] is None]
        why = f" (trainings diverged: {', '.join(diverged)})" if diverged else ""
        return (
            f"Compare the distilled rows before you use them: the text of outer step "
            f"{learned.best_step} was best on the validation rows ({changed:.1%} of learnable "
            f"tokens changed), but was held against no real rows on test rows{why}."
        )
    return decide(called("text"), rivals, "give --trainings 5")


def print_result(result: Distilled, progress: Progress) -> None:
    """The table, what weakens it, the paths, and what to do, for the end of a run."""
    if result.table:
        progress.say("")
        progress.say("Held-out response NLL per token (nats; lower is better)")
        for line in lines(result.table):
            progress.say(line)
        progress.say("")
        run = read_run(result.folder)
        for title, text in facts.warnings(run, rungs(run)):
            for line in wrap(f"{title} {text}", 80):
                progress.say(line)
        progress.say("")
    progress.say(f"{result.rows} rows: {result.dataset / 'train.jsonl'}")
    progress.say(result.held_out)
    progress.say(f"report: {result.report}")
    for line in wrap(result.verdict, 80):
        progress.say(line)
