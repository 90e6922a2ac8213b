"""`nacd select`: real rows of a data set, chosen by a method, as a data set of their own.

Same budget and same form of rows as `nacd distill`. Nothing is measured here, so all rows are
chosen from, but for the target rows that a method looks at; with --hold-out the splits are those
of `distill`, `compare` and `check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nacd.config import with_judge
from nacd.config.commands import ReportConfig, SelectConfig
from nacd.costs.costs import Forecast, Work, choosing_stage
from nacd.costs.forecasts import announce, measured
from nacd.data import Splits, hub_license
from nacd.data.stored import lengths
from nacd.distillation.learn import draw
from nacd.distillation.stages import open_run
from nacd.export import (
    Card,
    read_otherwise,
    shared_name,
)
from nacd.export.card import code
from nacd.export.chosen import write_chosen
from nacd.model.prepare import Prepared, Say, prepare, read_splits
from nacd.model.split_files import held_out_line, said_on_card, write_splits
from nacd.report.chosen import record_chosen
from nacd.report.page import write_report
from nacd.selection import METHODS, Task, check_rows, choose_once
from nacd.store.files import read_json, write_json
from nacd.store.processes import first
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress


@dataclass(frozen=True)
class Selected:
    """What `select` chose."""

    folder: Path
    """The run folder."""
    dataset: Path
    """`dataset/`, which `datasets.load_dataset` reads."""
    method: str
    rows: tuple[int, ...]
    """Indices among the training rows, best first."""
    tokens: int
    """Tokens of the chosen rows."""
    of: int
    """Training rows that were chosen from."""
    seconds: float
    """Seconds that choosing took, loading the model aside."""
    flops: float
    """Floating-point operations spent on the model, see `nacd.selection.forward_flops`."""
    measured: Mapping[str, str]
    """What the method measured of its choice, in words, by a label."""
    held_out: str = ""
    """Which rows were held out, in a sentence."""

    @property
    def summary(self) -> str:
        """The outcome in one plain sentence."""
        chose = (
            f"{self.method} chose {len(self.rows)} of {self.of} training rows ({self.tokens} "
            f"tokens) in {self.seconds:.1f} s and {self.flops:.2g} FLOPs."
        )
        return " ".join([chose, *(f"{k}: {v}." for k, v in self.measured.items())])


def select(
    config: SelectConfig, *, splits: Splits | None = None, progress: Progress | None = None
) -> Selected:
    """Choose training rows and write them as a data set.

    Args:
        config: everything that may be set.
        splits: rows already in hand, instead of those that the configuration names.
        progress: display.

    Raises:
        UserError: a wrong input; nothing already made is lost.
    """
    progress = progress or Progress()
    config.check()
    splits = _splits(config) if splits is None else splits
    check_rows(config.method, config.selection, splits.train, splits.target)
    folder = open_run(config, splits, free=("out", "selection.minutes"))
    unread = ("target", "development", "report")  # `check_rows` asks for what the method looks at
    prepared = prepare(
        config.model,
        config.data,
        progress.say,
        splits,
        folder.memory,
        unread,
        weights=METHODS[config.method].reads_model,
    )
    config.recipe.check_rows(len(draw(prepared.train, config.size, config.seed)))
    task = Task(
        prepared,
        config.recipe,
        with_judge(config.selection, config.data),
        config.seed,
        folder.path / "selection",
        progress,
        config.size,
    )
    _say_forecast(config, task, folder, progress)
    chosen = choose_once(folder, "chosen", task, config.method)
    rows = tuple(chosen["rows"])
    result = Selected(
        folder.path,
        folder.path / "dataset",
        config.method,
        rows,
        int(lengths(prepared.train.rows)[[*rows]].sum()),
        len(prepared.train),
        chosen["seconds"],
        chosen["flops"],
        chosen.get("measured", {}),
        held_out_line(folder.path, prepared, config.data)
        if len(prepared.report)
        else "No rows were held out; --hold-out sets validation and test rows aside.",
    )
    first(lambda: _write(config, prepared, result, chosen, progress.say))
    return result


def _write(
    config: SelectConfig,
    prepared: Prepared,
    result: Selected,
    chosen: Mapping[str, Any],
    say: Say,
) -> None:
    """Write the data set, the splits, the results and the page."""
    folder, rows = result.folder, result.rows
    _export(config, prepared, result, say)
    write_splits(folder, prepared, config.data)
    write_json(
        folder / "results.json",
        {
            "method": config.method,
            "budget": config.budget,
            "rows": [
                {
                    "source": prepared.train.examples[i].source,
                    "digest": prepared.train.examples[i].digest,
                    "tokens": len(prepared.train.rows[i]),
                    "score": score,
                }
                for i, score in zip(rows, chosen["scores"], strict=True)
            ],
            "tokens": result.tokens,
            "seconds": result.seconds,
            "flops": result.flops,
            "measured": [[label, value] for label, value in result.measured.items()],
            "sizes": prepared.sizes,
            "template": prepared.template.describe(),
        },
    )
    record_chosen(folder, prepared, rows)
    write_report(ReportConfig(folder))


def _splits(config: SelectConfig) -> Splits:
    """The rows; target rows are set aside for a method that looks at them, no others unasked."""
    judge = with_judge(config.selection, config.data).judge
    looks = METHODS[config.method].needs_target or judge == "target"
    return read_splits(config.data, target=looks or config.hold_out, held_out=config.hold_out)


def _say_forecast(config: SelectConfig, task: Task, folder: RunFolder, progress: Progress) -> None:
    """Say what the choice takes, if it is still to be made and reads the model."""
    rows = len(draw(task.prepared.train, config.size, config.seed))
    work = Work(task.prepared, config.recipe, rows)
    quick = not METHODS[config.method].anytime and not work.choosing(config.method, task.config)
    if progress.quiet or quick or (folder.path / "chosen.json").is_file():
        return
    speed = measured(task.prepared, config.recipe, progress)
    work.forward = speed.forward
    announce(Forecast((choosing_stage(work, speed, config.method, task.config),)), progress)


def _export(config: SelectConfig, prepared: Prepared, result: Selected, say: Say) -> None:
    """Write `dataset/`: the rows as `nacd distill` writes them, and a card of their own."""
    recipe, in_order = config.recipe, METHODS[config.method].orders
    if not in_order:  # best first is no order to train in
        recipe = replace(recipe, shuffle=True)
    card = Card(
        data=shared_name(config.data.data),
        data_rows=result.of,
        model=shared_name(config.model.model),
        template=prepared.template.describe(),
        recipe=recipe,
        projection="none",
        settings=_settings(config, result) | said_on_card(prepared),
        title=f"Instruction data chosen by {config.method}",
        max_tokens=config.data.max_tokens,
        license=config.data.license or hub_license(config.data.data),
        language=config.data.language,
        provenance=read_json(result.folder / "provenance.json"),
    )
    rows = write_chosen(
        result.dataset,
        [prepared.train.examples[i] for i in result.rows],
        prepared.template,
        card,
        config.method,
        config.model,
        in_order=in_order,
        seed=config.seed,
        measured="\n".join(f"- {label}: {value}" for label, value in result.measured.items()),
    )
    for line in chain.from_iterable(read_otherwise(rows).values()):
        say(line)


def _settings(config: SelectConfig, result: Selected) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": f"{config.method}: {METHODS[config.method].about}",
        "budget": config.budget,
        "seed": config.seed,
        "seconds to choose": round(result.seconds, 1),
        "FLOPs to choose": f"{result.flops:.3g}",
    }
    if config.selection.dedup:
        settings["near-copies left out from"] = f"Jaccard {config.selection.dedup:g}"
    if config.selection.stratify:
        settings["in proportion by"] = code(config.data.group_column or "group")
    return settings
