"""`nacd check`: trains on random sets of a few sizes and on choices, and says what to do.

    run.yaml, provenance.json          settings; versions and hashes of the rows
    tuning.json, tuning/               the recipe for the budget, and each training behind it
    trainings/, choosing/              each training and each choice, done once
    results.json, report.html          verdict, table, cost; the page
    dataset/                           the rows that are recommended, with the tuned recipe
    dataset-at-budget/                 the best known rows of the budget, where those are others
    labels/                            the model trained on all rows, and its soft labels of those
    splits/                            the training, target, validation and test rows

The plan is made from a measured step and printed before the first long step; the time given bounds
all of it. The same command goes on, and with more `--minutes` it adds trainings.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from nacd.checking.outcome import Checked, Outcome
from nacd.checking.plan import Costs, Goal, Sizes, State, goals, next_job, plan, sizes_of
from nacd.checking.recommended import write_recommended, write_taught
from nacd.checking.said import plan_lines
from nacd.checking.trainings import Trainings
from nacd.checking.verdict import judge
from nacd.config import SelectionConfig, with_judge
from nacd.config.check import FREE, SWAPPING, CheckConfig
from nacd.config.methods import METHODS
from nacd.costs.costs import Work, choosing_stage, measure, tokens_of
from nacd.costs.forecasts import go_ahead
from nacd.data import Splits
from nacd.data.split import SPOKEN
from nacd.distillation.learn import draw
from nacd.distillation.stages import open_run
from nacd.errors import UserError
from nacd.model.lora import resolve_device
from nacd.model.prepare import Prepared, prepare, read_splits
from nacd.model.split_files import held_out_line, write_splits
from nacd.report.page import ReportConfig, write_report
from nacd.selection import check_rows
from nacd.store.clock import StageClock
from nacd.store.files import write_json
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.terminal.units import byte_size, duration
from nacd.training.halving import TRAININGS
from nacd.training.tuning import TUNING_DRAWS, TunedRecipe, tune_recipe

TUNING_SHARE = 0.3
"""Most of the time that tuning may take."""
FADING = 0.6
"""Weight of a training's speed in what the next ones are thought to take, from one to the next."""
TUNING_LEAST = 3
"""Trainings that must fit into it; otherwise the recipe is taken as given."""


def check(
    config: CheckConfig, *, splits: Splits | None = None, progress: Progress | None = None
) -> Checked:
    """Find out how many rows a data set needs, and whether a choice of them beats random ones.

    Args:
        config: everything that may be set.
        splits: rows already in hand, instead of those that the configuration names.
        progress: display.

    Raises:
        UserError: a wrong input; trainings already done are kept.
    """
    began = time.perf_counter()
    progress = progress or Progress()
    config.check()
    splits = read_splits(config.data) if splits is None else splits
    for method in config.methods:
        check_rows(method, SelectionConfig(), splits.train, splits.target, "--methods")
    folder = open_run(config, splits, free=FREE)
    before = _spent(folder)
    clock = StageClock(folder.path / "stages.json", resolve_device(config.model.device))
    counts = ", ".join(f"{len(getattr(splits, name)):,} {word}" for name, word in SPOKEN.items())
    progress.say(f"rows: {counts}")
    progress.say(f"loading {config.model.model} and measuring a step ...")
    with clock.stage("loading the model and encoding rows"):
        prepared = prepare(config.model, config.data, progress.say, splits)
    rows = len(draw(prepared.train, config.size, TUNING_DRAWS))
    if rows >= len(prepared.train):
        raise UserError(
            f"--budget {config.budget}: {rows} of {len(prepared.train)} training rows; nothing is "
            "left out. Give a smaller one."
        )
    config.recipe.check_rows(rows)
    sizes = sizes_of(rows, len(prepared.train), config.recipe)
    wanted = goals(sizes, config.methods, config.labels)

    def left() -> float:
        return 60 * config.minutes - before - (time.perf_counter() - began)

    with clock.stage("measuring a step"):
        costs = _costs(config, prepared)
    trainings = Trainings(config, prepared, folder, State(sizes, 0.0), progress)
    minutes = _tuning_minutes(config, costs, sizes)
    known = _tuned(trainings, 0.0)
    trainings.take(known)
    planned = _say_plan(trainings, wanted, costs, _tuning_seconds(minutes, known), left(), clock)
    began += go_ahead(planned, progress)  # the time of an answer is nobody's
    with clock.stage("tuning the recipe"):
        tuned = _tuned(trainings, minutes)
    trainings.take(tuned)
    if tuned is not None:
        progress.say(f"recipe: {tuned.describe()}")
    with clock.stage("training and measuring"):
        costs = _train(trainings, wanted, costs, left)
    with clock.stage("writing the result"):
        return _write(Outcome(trainings, tuned, costs, wanted, _spent(folder)))


def _write(outcome: Outcome) -> Checked:
    """Judge, and write the result, the rows and the page."""
    trainings = outcome.trainings
    measured = outcome.measured()
    verdict = judge(measured)
    advice, advised = outcome.advice(verdict)
    sentence, detail = verdict.sentence, verdict.detail
    if verdict.kind == "too few":
        sentence = f"{sentence} {advice}".strip()
    else:
        detail = f"{detail} {advice}".strip()
    table = outcome.table(measured, verdict)
    folder = trainings.folder.path
    readings = outcome.readings()
    results = {
        "kind": verdict.kind,
        "verdict": sentence,
        "detail": detail,
        "rows": verdict.rows,
        "method": verdict.method,
        "budget_rows": measured.budget,
        "total_rows": measured.total,
        "margin": verdict.margin,
        "table": table,
        "recipe": asdict(trainings.recipe),
        "tuning": outcome.tuning(),
        "warnings": outcome.warnings(measured),
        "sizes": {name: len(getattr(trainings.prepared, part)) for part, name in SPOKEN.items()},
        "template": trainings.prepared.template.describe(),
        "minutes": outcome.spent / 60,
        "advised_minutes": advised,
        "costs": outcome.costs_by_set(),
        "left_out": outcome.left_out(),
        "readings": readings,
        "datasets": write_recommended(outcome, verdict, f"{sentence} {detail}".strip(), table),
    }
    labels = write_taught(outcome, verdict)
    write_splits(folder, trainings.prepared, trainings.config.data)
    write_json(folder / "results.json", results)
    return Checked(
        folder,
        folder / "dataset" if verdict.rows else None,
        write_report(ReportConfig(folder)),
        verdict.kind,
        sentence,
        detail,
        verdict.rows,
        trainings.recipe,
        table,
        outcome.spent / 60,
        advised,
        held_out_line(folder, trainings.prepared, trainings.config.data),
        labels,
    )


def _spent(folder: RunFolder) -> float:
    """Seconds of what the folder holds."""
    patterns = ("tuning/*.json", "trainings/*/*/*.json", "choosing/*/chosen.json")
    files = (file for pattern in patterns for file in folder.path.glob(pattern))
    return math.fsum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files)


def _costs(config: CheckConfig, prepared: Prepared) -> Costs:
    speed = measure(prepared.model, prepared.train.rows, config.recipe)
    rows = len(draw(prepared.train, config.size, TUNING_DRAWS))
    work = Work(prepared, config.recipe, rows, speed.forward)
    selection = with_judge(SelectionConfig(minutes=SWAPPING * config.minutes), config.data)
    stages = {
        method: choosing_stage(work, speed, method, selection)
        for method in config.methods
        if method != "best-of"  # its draws are trainings of the check
    }
    return Costs(
        speed.step,
        speed.forward * speed.step,
        work.mean,
        tokens_of(prepared.report.rows),
        tokens_of(prepared.development.rows),
        {method: stage.seconds for method, stage in stages.items()},
        {method: stage.disk for method, stage in stages.items()},
    )


def _tuning_minutes(config: CheckConfig, costs: Costs, sizes: Sizes) -> float:
    """How long the recipe may be tuned; 0: not at all."""
    work = config.recipe.epochs * sizes.budget * costs.row_tokens
    once = costs.per_token * work + costs.per_read * costs.validation_tokens
    minutes = TUNING_SHARE * config.minutes
    return minutes if config.tune and 60 * minutes >= TUNING_LEAST * once else 0.0


def _tuned(trainings: Trainings, minutes: float) -> TunedRecipe | None:
    """The recipe for the budget, found within so many minutes; without any, as it was found before.

    None: it is taken as given.
    """
    config, prepared, folder = trainings.config, trainings.prepared, trainings.folder
    if not minutes and not (folder.path / "tuning.json").is_file():
        return None
    seeds = (TUNING_DRAWS + 100 * config.seed + number for number in range(TRAININGS))
    draws = [draw(prepared.train, config.size, seed) for seed in seeds]
    return tune_recipe(
        prepared.model,
        [trainings.encoded(rows) for rows in draws],
        prepared.development.rows,
        config.recipe,
        folder,
        minutes=minutes,
        progress=trainings.progress,
    )


def _tuning_seconds(minutes: float, known: TunedRecipe | None) -> float:
    """What tuning may still take."""
    if known is None:
        return 60 * minutes
    return 0.0 if known.complete else max(0.0, 60 * minutes - known.seconds)


def _say_plan(
    trainings: Trainings,
    wanted: Sequence[Goal],
    costs: Costs,
    tuning: float,
    left: float,
    clock: StageClock,
) -> float:
    """Say what will be done in the time that is left, stage by stage; returns its seconds."""
    config, say = trainings.config, trainings.progress.say
    rest = max(0.0, left)
    say(
        f"The plan for {duration(rest)} of {config.minutes:g} min (estimated from a measured step):"
    )
    if tuning:
        say(f"  {'tuning learning rate and epochs':<40}{'':>4}  up to {duration(tuning)}")
    elif trainings.recipe == config.recipe:
        say("  recipe as given" + ("; there is no time to tune it" if config.tune else ""))
    made = plan(trainings.state, wanted, costs, rest - tuning)
    for line in plan_lines(made):
        say(line)
    say(f"  {'in all':<40}{'':>4}  {duration(tuning + made.seconds)}")
    of = {job.kind for job, _ in made.jobs}
    disk = sum(size for kind, size in costs.disk.items() if kind in of)
    peak = clock.stages[-1]["device_peak_bytes"] or clock.stages[-1]["peak_bytes"]
    memory = f"{byte_size(peak)} for that step, longer rows take more" if peak else "not known"
    say(f"  memory: {memory}; disk: {f'about {byte_size(disk)}' if disk else 'a few MB'}")
    return tuning + made.seconds


def _train(
    trainings: Trainings,
    wanted: Sequence[Goal],
    costs: Costs,
    left: Callable[[], float],
) -> Costs:
    """Do what the time allows; returns the costs by what the last trainings took."""
    seconds, tokens = np.zeros(2), np.zeros(2)  # of training and of measuring
    first = costs
    while (job := next_job(trainings.state, wanted, costs, left())) is not None:
        trainings.run(job)
        if job.choosing:
            continue
        result = trainings.state.results[job]
        measuring = result["seconds"] - result["training_seconds"]
        seconds = FADING * seconds + (result["training_seconds"], measuring)
        tokens = FADING * tokens + (costs.trained(job), costs.read(job, trainings.state))
        speed = seconds[0] / tokens[0] if tokens[0] else first.per_token
        costs = replace(
            costs,
            per_token=speed,
            per_read=seconds[1] / tokens[1],
            choosing={
                method: spent if METHODS[method].anytime else spent * speed / first.per_token
                for method, spent in first.choosing.items()
            },
        )
    return costs
