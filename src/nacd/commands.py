"""What the commands do, as functions: the Python API and the command line share them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacd.config import DistillConfig, to_dict
from nacd.data import Splits
from nacd.diagnosis import Diagnosis, Estimate, diagnose, estimate
from nacd.distillation.pseudo import PseudoData
from nacd.distillation.text import TextRow
from nacd.errors import UserError
from nacd.experts import (
    Expert,
    import_checkpoints,
    open_expert,
    plan_experts,
    record_expert,
)
from nacd.export import Card, DatasetRow, write_dataset, write_soft_prompts
from nacd.files import write_json
from nacd.ladder import climb, entries_for, lines
from nacd.learn import (
    Distiller,
    Learned,
    Seeds,
    draw,
    make_seeds,
    refuse_without_target,
)
from nacd.meta import Engine, make_engine
from nacd.models import resolve_device
from nacd.prepare import Prepared, prepare, read_splits
from nacd.progress import Progress
from nacd.recipe import Recipe
from nacd.report.record import write_records
from nacd.report.stages import StageClock
from nacd.run import RunFolder, versions
from nacd.selection import Task, check_method, check_rows, choose_once
from nacd.student import mean_nll, plain, train_student, tune_rate

FREE = ("out", "compare", "draws")
"""Keys that may differ when a run goes on: they change no stage that is done."""

CHECKED = 4
"""Rows a batch of the short check before a run."""


@dataclass(frozen=True)
class Distilled:
    """What `distill` made."""

    folder: Path
    """The run folder."""
    dataset: Path
    """`dataset/`, which `datasets.load_dataset` reads."""
    rows: int
    tokens_changed: float
    """Share of all learnable tokens that are not the seeds' any more."""
    table: list[dict[str, Any]]
    """A row a method; empty where nothing was compared."""
    verdict: str
    """The outcome in one plain sentence."""


def open_run(config: Any, splits: Splits, free: Sequence[str] = FREE) -> RunFolder:
    """Open the run folder of a configuration, and hold the data to what the run began with.

    Raises:
        UserError: another configuration, or the same with other data.
    """
    folder = RunFolder(Path(config.out))
    folder.open(to_dict(config), may_differ=free)
    names = ("train", "target", "development", "report")
    now = {name: _fingerprint([e.digest for e in getattr(splits, name)]) for name in names}
    then = folder.once(
        "provenance",
        lambda: {"versions": versions(), "data": now, "began": time.strftime("%Y-%m-%d")},
    )
    changed = [name for name in names if then["data"][name] != now[name]]
    if changed:
        raise UserError(
            f"--out {config.out}: the data has changed since this run began "
            f"({', '.join(changed)} rows). Choose another --out, or bring the old data back."
        )
    return folder


def _fingerprint(digests: Sequence[str]) -> str:
    return f"{len(digests)} rows, {hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}"


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
    config.check()
    check_method(config.seeds_by, config.selection, "--seeds-by")
    splits = read_splits(config.data) if splits is None else splits
    check_rows(config.seeds_by, config.selection, splits.train, splits.target, "--seeds-by")
    folder = open_run(config, splits)
    clock = StageClock(folder.path / "stages.json", resolve_device(config.model.device))
    with clock.stage("loading the model and encoding rows"):
        prepared = prepare(config.model, config.data, progress.say, splits)
    refuse_without_target(config, prepared)
    with clock.stage("choosing seed rows"):
        indices = _chosen(config, prepared, folder, progress)
    seeds = make_seeds(prepared, indices, config.outer.learn)
    tokens = sum(len(row) for row in seeds.rows)
    progress.say(
        f"{len(prepared.train)} training rows; {len(seeds.rows)} seed rows, {tokens} tokens, "
        f"{seeds.pseudo.size} of them learnable"
    )
    with clock.stage("tuning the learning rate"):
        recipe = _tuned(config, prepared, seeds, folder, progress)
    with clock.stage("checking the meta-gradient"):
        engine = _engine(config, prepared, seeds, recipe, folder, progress)
    experts: list[Expert] = []
    if config.outer.objective == "trajectory":
        with clock.stage("recording experts"):
            experts = _experts(config, prepared, folder, progress)
    distiller = Distiller(
        config, prepared, seeds, recipe, engine, experts, folder.path / "distill", progress
    )
    with clock.stage("learning"):
        learned = distiller.run()
    if learned.stopped:
        progress.say(f"Learning stopped early: {learned.stopped}")
    final = replace(recipe, learning_rate=learned.learning_rate)
    text = distiller.text(learned.ids)
    changed = _share(seeds.pseudo, learned.ids)
    card = Card(
        data=config.data.data,
        data_rows=len(prepared.train),
        model=config.model.model,
        template=prepared.template.describe(),
        recipe=final,
        projection=config.outer.projection,
        settings={
            "objective": config.outer.objective,
            "outer steps": config.outer.outer_steps,
            "learnable positions": config.outer.learn,
            "exported outer step": learned.best_step,
            "seed": config.seed,
            "seed rows chosen by": config.seeds_by,
            "LoRA rank": config.model.lora_rank,
            "LoRA alpha": config.model.lora_alpha,
            "LoRA targets": " ".join(config.model.lora_targets),
            "tokens changed": f"{changed:.1%}",
            "learning seconds": round(learned.seconds),
        },
    )
    export(folder, prepared, seeds, text, learned, card)
    write_records(
        folder.path, prepared, seeds, learned, text, distiller.allowed, config.outer.metric
    )
    table: list[dict[str, Any]] = []
    if config.compare:
        last = distiller.text(learned.last_ids)
        entries = entries_for(
            config.compare,
            draws=lambda s: plain(
                [
                    prepared.train.rows[i]
                    for i in draw(prepared.train, config.budget, 10_000 + 100 * config.seed + s)
                ],
                seeds.pseudo.pad_id,
            ),
            seeds=seeds.pseudo,
            allowed=distiller.allowed,
            soft=learned.soft.to(prepared.model.device),
            soft_recipe=final,
            text=distiller.settled(text),
            text_changed=changed,
            last=distiller.settled(last),
            last_changed=_share(seeds.pseudo, learned.last_ids),
            full=plain(prepared.train.rows, seeds.pseudo.pad_id),
            recipe=recipe,
            full_epochs=config.full_epochs,
        )
        with clock.stage("training and measuring the table"):
            table = climb(
                prepared.model, recipe, entries, prepared.report, config.draws, folder, progress
            )
        export(folder, prepared, seeds, text, learned, replace(card, results=_shown(table)))
    verdict = judge(table, changed, learned)
    write_json(
        folder.path / "results.json",
        {"verdict": verdict, "table": table, "tokens_changed": changed, "sizes": prepared.sizes},
    )
    return Distilled(folder.path, folder.path / "dataset", len(seeds.rows), changed, table, verdict)


def _chosen(
    config: DistillConfig, prepared: Prepared, folder: RunFolder, progress: Progress
) -> list[int]:
    """The seed rows' indices, chosen once a run by --seeds-by."""
    task = Task(
        prepared,
        config.recipe,
        config.selection,
        config.seed,
        folder.path / "selection",
        progress,
        config.budget,
    )
    return choose_once(folder, "seeds", task, config.seeds_by, "--seeds-by")["rows"]


def _share(data: PseudoData, ids: Tensor) -> float:
    return float((data.ids != ids).float().mean())


def _tuned(
    config: DistillConfig, prepared: Prepared, seeds: Seeds, folder: RunFolder, progress: Progress
) -> Recipe:
    """The recipe, its learning rate chosen on development rows where --tune-rates asks for it."""
    if not config.tune_rates:
        return config.recipe

    def score(rate: float) -> float:
        recipe = replace(config.recipe, learning_rate=rate)
        theta = train_student(prepared.model, recipe, seeds.pseudo, 3000)
        return mean_nll(prepared.model, theta, prepared.development.rows)

    def search() -> dict[str, Any]:
        found = tune_rate(config.tune_rates, score)
        return {"learning_rate": found.learning_rate, "nll": [*found.nll.items()]}

    found = folder.once("tuning", search)
    tried = ", ".join(f"{rate:g}: {nll:.3f}" for rate, nll in found["nll"])
    progress.say(
        f"learning rate {found['learning_rate']:g}, by development NLL after training on the "
        f"untouched seeds ({tried})"
    )
    return replace(config.recipe, learning_rate=found["learning_rate"])


def _engine(
    config: DistillConfig,
    prepared: Prepared,
    seeds: Seeds,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
) -> Engine:
    """The engine asked for, or the one that the doctor's short check finds right."""
    outer = config.outer
    asked = None if outer.engine == "auto" else outer.engine

    def check() -> dict[str, Any]:
        progress.say("checking the meta-gradient on two batches ...")
        diagnosis = diagnose(
            prepared.model,
            recipe,
            seeds.pseudo.batches(min(recipe.batch_size, CHECKED), 2, seed=1),
            prepared.model.embed(seeds.pseudo.ids).to(torch.float32),
            thorough=config.model.dtype in ("bfloat16", "float16"),  # those have to be proved
        )
        diagnosis.require(asked)
        assert diagnosis.verdict is not None  # `require` has raised otherwise
        return {
            "engine": asked or diagnosis.verdict.engine,
            "eps": outer.fd_eps if asked else diagnosis.verdict.eps,
            "reason": "as asked for" if asked else diagnosis.reason,
        }

    found = folder.once("doctor", check)
    progress.say(f"meta-gradient engine: {found['engine']} ({found['reason']})")
    return make_engine(found["engine"], found["eps"] or outer.fd_eps)


def _experts(
    config: DistillConfig, prepared: Prepared, folder: RunFolder, progress: Progress
) -> list[Expert]:
    """Record the expert trajectories of a run, or read those that are there."""
    settings = config.expert
    recipe = settings.recipe(config.recipe)
    if settings.expert_from:
        return _imported(config, prepared, folder, recipe)
    digests = [example.digest for example in prepared.train.examples]
    first = folder.path / "experts" / "0" / "manifest.json"
    if not first.is_file():
        student = config.recipe.total_steps(len(prepared.train))
        plan = plan_experts(
            prepared.model,
            list(prepared.train.rows),
            recipe,
            settings.snapshot_every,
            settings.experts,
            student,
        )
        progress.say(plan.describe())
    experts = []
    for number in range(settings.experts):
        total = recipe.total_steps(len(prepared.train))
        with progress.stage(f"expert {number + 1}/{settings.experts}", total) as tick:
            experts.append(
                record_expert(
                    prepared.model,
                    prepared.train.rows,
                    digests,
                    recipe,
                    seed=100 * config.seed + number,
                    every=settings.snapshot_every,
                    folder=folder.path / "experts" / str(number),
                    pad_id=prepared.model.tokenizer.pad_token_id,
                    progress=lambda done, _, loss, tick=tick: tick(done, loss),
                    held_out=lambda theta: mean_nll(
                        prepared.model, theta, prepared.development.rows
                    ),
                )
            )
    return experts


def _imported(
    config: DistillConfig, prepared: Prepared, folder: RunFolder, recipe: Recipe
) -> list[Expert]:
    found = []
    for number, source in enumerate(config.expert.expert_from):
        place = folder.path / "experts" / str(number)
        if (place / "manifest.json").is_file():
            found.append(open_expert(place))
        else:
            found.append(import_checkpoints(prepared.model, Path(source), place, recipe))
    return found


def export(
    folder: RunFolder,
    prepared: Prepared,
    seeds: Seeds,
    text: Sequence[TextRow],
    learned: Learned,
    card: Card,
) -> None:
    """Write `dataset/` and `soft_prompts.safetensors`."""
    rows = []
    for row, seed in zip(text, seeds.examples, strict=True):
        written = prepared.template.row(row.example)
        rows.append(
            DatasetRow(
                written["prompt"], written["completion"], seed.source, seed.digest, row.changed
            )
        )
    write_dataset(folder.path / "dataset", rows, card)
    write_soft_prompts(
        folder.path / "soft_prompts.safetensors",
        learned.soft,
        seeds.pseudo.slots,
        [seed.digest for seed in seeds.examples],
        {"model": card.model, "template": json.dumps(dict(card.template))},
    )


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
                "report NLL per token": round(row["report_nll"], 3),
                "minus seeds (95 %)": against,
                "trainings": row["trainings"],
                "rows": row["rows"],
                "tokens": row["tokens"],
                "steps": row["steps"],
            }
        )
    return shown


def judge(table: Sequence[dict[str, Any]], changed: float, learned: Learned) -> str:
    """The outcome in plain words: what the table shows, and no more."""
    if learned.best_step == 0 or changed == 0.0:
        return (
            "No distilled text was better than the untouched seeds on the development rows, so "
            "the exported rows are the seeds."
        )
    text = next((row for row in table if row["method"] == "text"), None)
    if text is None or "minus_seeds" not in text:
        return (
            f"The text of outer step {learned.best_step} was best on the development rows "
            f"({changed:.1%} of learnable tokens changed); it was not compared on report rows."
        )
    difference = text["minus_seeds"]
    spread = text.get("minus_seeds_95")
    change = f"{abs(difference):.3f} nats per token"
    if spread is None:
        return f"One training a row: NACD text minus seeds is {difference:+.3f}; too few to judge."
    if difference + spread < 0:
        return f"NACD text beats its untouched seeds by {change} (95 % interval ±{spread:.3f})."
    if difference - spread > 0:
        return f"NACD text is worse than its untouched seeds by {change} (±{spread:.3f})."
    return (
        f"NACD text and its untouched seeds cannot be told apart here ({difference:+.3f} "
        f"±{spread:.3f} nats per token)."
    )


def print_result(result: Distilled, progress: Progress) -> None:
    """The table and the paths, for the end of a run."""
    if result.table:
        progress.say("")
        progress.say("Held-out response NLL per token (nats; lower is better)")
        for line in lines(result.table):
            progress.say(line)
        progress.say("")
    progress.say(result.verdict)
    progress.say(f"{result.rows} rows: {result.dataset / 'train.jsonl'}")
    progress.say(f"run folder: {result.folder}")


def record_experts(config: DistillConfig, *, progress: Progress | None = None) -> list[Expert]:
    """Record the expert trajectories of a run; `distill` with the same flags then uses them.

    Raises:
        UserError: a wrong input; snapshots already made are kept.
    """
    progress = progress or Progress()
    config.check()
    splits = read_splits(config.data)
    folder = open_run(config, splits)
    prepared = prepare(config.model, config.data, progress.say, splits)
    return _experts(config, prepared, folder, progress)


def doctor(
    config: DistillConfig, *, progress: Progress | None = None
) -> tuple[Diagnosis, Estimate | None]:
    """Compare the engines on two real batches of the user's data, and estimate the planned run.

    Returns:
        What the comparison found, and the estimate; None where no engine is right.

    Raises:
        UserError: a wrong input.
    """
    progress = progress or Progress(quiet=True)
    config.check()
    prepared = prepare(config.model, config.data, progress.say)
    seeds = make_seeds(
        prepared, draw(prepared.train, config.budget, config.seed), config.outer.learn
    )
    progress.say("comparing the engines on two batches ...")
    diagnosis = diagnose(
        prepared.model,
        config.recipe,
        seeds.pseudo.batches(config.recipe.batch_size, 2, seed=1),
        prepared.model.embed(seeds.pseudo.ids).to(torch.float32),
        thorough=True,
    )
    if diagnosis.verdict is None:
        return diagnosis, None
    steps = math.ceil(
        config.expert.recipe(config.recipe).total_steps(len(prepared.train))
        / config.expert.snapshot_every
    )
    trajectory = config.outer.objective == "trajectory"
    planned = estimate(
        prepared.model,
        config.recipe,
        max(
            seeds.pseudo.batches(config.recipe.batch_size, 4, seed=1),
            key=lambda b: b.ids.numel(),
        ),
        prepared.model.embed(seeds.pseudo.ids).to(torch.float32),
        rows=len(seeds.rows),
        outer_steps=config.outer.outer_steps,
        engine=diagnosis.verdict.engine,
        eps=diagnosis.verdict.eps or config.outer.fd_eps,
        window=config.outer.window,
        segments=config.outer.segments,
        target_batches=0
        if trajectory
        else math.ceil(len(prepared.target) / config.recipe.batch_size),
        snapshots=config.expert.experts * (steps + 1) if trajectory else 0,
    )
    return diagnosis, planned
