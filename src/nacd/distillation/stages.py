"""The stages before learning, each kept in the run folder so that it is done once.

Starting rows chosen, the recipe tuned, the engine checked, expert trajectories recorded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nacd.config import DistillConfig, with_judge
from nacd.config.recipe import Recipe
from nacd.config.settings import to_dict
from nacd.data import Encoded, Example, Splits
from nacd.data.rows import Rows
from nacd.data.stored import digests
from nacd.distillation.agreement import measure
from nacd.distillation.learn import Distiller, Starts, draw
from nacd.distillation.pool import window_of
from nacd.errors import UserError
from nacd.experts import Expert, import_checkpoints, plan_experts, record_expert
from nacd.meta import PASSES, Engine, likely, make_engine
from nacd.meta.diagnosis import diagnose
from nacd.model.precision import in_force
from nacd.model.prepare import Prepared
from nacd.selection import METHODS, Task, choose_once
from nacd.selection.random import random_order
from nacd.store.files import read_json
from nacd.store.processes import first, spread
from nacd.store.run import RunFolder, versions
from nacd.terminal.progress import Progress
from nacd.training.student import (
    EXPERT_SEED,
    TUNING_SEED,
    mean_nll,
    train_student,
    tune_rate,
)
from nacd.training.tuning import tune_recipe

FREE = ("out", "compare", "trainings")
"""Keys that may differ when a run goes on: they change no stage that is done."""
SAID = ("data.license", "data.language", "track")
"""Keys that change nothing in any run but what is said of it."""
ROUNDING = ("model.micro_tokens", "model.shard")
"""Keys that change no more than the rounding, and may be what lets a run go on."""
OLD_RATES = (
    "--tune-rates will be gone in the next release: --tune finds learning rate and epochs together."
)

CHECKED = 4
"""Rows a batch of the short check before a run."""


def open_run(
    config: Any, splits: Splits, free: Sequence[str] = FREE, *, alone: bool = True
) -> RunFolder:
    """Open the run folder of a configuration, and hold the data to what the run began with.

    Raises:
        UserError: another configuration, the same with other data, or, `alone`, another process is
            at work there.
    """
    folder = RunFolder(Path(config.out))
    defaults = to_dict(type(config)())
    may_differ = (*free, *SAID, *ROUNDING)
    folder.open(to_dict(config), may_differ=may_differ, defaults=defaults, alone=alone)
    names = ("train", "target", "development", "report")
    now = {name: _fingerprint(digests(getattr(splits, name))) for name in names}
    marks = {name: _fingerprint(map(_marks, getattr(splits, name))) for name in names}
    made = {"versions": versions(), "data": now, "marks": marks, "began": time.strftime("%Y-%m-%d")}
    made["arithmetic"] = in_force()
    then = folder.once("provenance", lambda: made)
    held = then.get("marks", marks)  # a folder of an older version has none
    changed = [n for n in names if (then["data"][n], held[n]) != (now[n], marks[n])]
    if changed:
        raise UserError(
            f"--out {config.out}: the data has changed since this run began "
            f"({', '.join(changed)} rows). Choose another --out, or bring the old data back."
        )
    return folder


def _fingerprint(parts: Iterable[str]) -> str:
    count, digest = 0, hashlib.sha256()
    for part in parts:
        count += 1
        digest.update(part.encode())
    return f"{count} rows, {digest.hexdigest()[:16]}"


def _marks(example: Example) -> str:
    """What of a row its digest leaves out, and a run depends on: which turns are labels, the
    choices, the group, whether it is written out already."""
    turns = [message.train for message in example.messages]
    return repr((turns, example.choices, example.answer, example.group, example.verbatim))


def check_trainings(config: DistillConfig, prepared: Prepared) -> None:
    """Refuse trainings of a run that their warm-up would keep at a learning rate of 0.

    Raises:
        UserError: on the starting rows, on the table's full data, or an expert's; flags are named.
    """
    rows = len(prepared.train)
    config.recipe.check_rows(len(draw(prepared.train, config.size, config.seed)))
    if "full" in config.compare:
        full = replace(config.recipe, steps=0, epochs=config.full_epochs)
        full.check_rows(rows, epochs="--full-epochs")
    if config.outer.objective == "trajectory" and not config.expert.expert_from:
        config.expert.check_rows(config.recipe, rows)


def chosen_rows(
    config: DistillConfig, prepared: Prepared, folder: RunFolder, progress: Progress
) -> list[int]:
    """The starting rows' indices, chosen once a run by --start-by, in a random order.

    The order of the rows may be the one they are trained in: it must not be a ranking's.
    """
    task = Task(
        prepared,
        config.recipe,
        with_judge(config.selection, config.data),
        config.seed,
        folder.path / "selection",
        progress,
        config.size,
    )
    rows = choose_once(folder, "seeds", task, config.start_by, "--start-by")["rows"]
    if METHODS[config.start_by].orders:
        return rows
    return [rows[i] for i in random_order(len(rows), config.seed)]


def tuned(
    recipe: Recipe,
    rates: Sequence[float],
    prepared: Prepared,
    data: Rows,
    folder: RunFolder,
    name: str = "tuning",
) -> dict[str, Any]:
    """Try learning rates on validation rows, training on `data`; done once, kept as `name`.json.

    Kept rates of other rows are tried anew.

    Returns:
        `learning_rate`, the best, and `nll`, pairs of a rate and its validation NLL.
    """

    def score(rate: float) -> float:
        tried = replace(recipe, learning_rate=rate)
        theta = train_student(prepared.model, tried, data, TUNING_SEED)
        return mean_nll(prepared.model, theta, prepared.development.rows)

    def search() -> dict[str, Any]:
        found = tune_rate(rates, score)
        return {"learning_rate": found.learning_rate, "nll": [*found.nll.items()]}

    return folder.once(name, search, of=data.digest())


def found_recipe(
    recipe: Recipe,
    prepared: Prepared,
    sets: Sequence[Sequence[Encoded]],
    folder: RunFolder,
    progress: Progress,
    name: str = "tuning",
) -> tuple[Recipe, str]:
    """The recipe with learning rate and epochs found on validation rows, and how, in a sentence.

    Its trainings are shuffled; whether later ones are, the recipe says as before.
    """
    if not (folder.path / f"{name}.json").is_file():
        progress.say("finding learning rate and epochs on validation rows, by whole trainings ...")
    found = tune_recipe(
        prepared.model,
        sets,
        prepared.development.rows,
        recipe,
        folder,
        name=name,
        progress=progress,
    )
    progress.say(f"recipe: {found.describe()}")
    for note in found.notes:
        progress.say(note)
    rate, epochs = found.recipe.learning_rate, found.recipe.epochs
    return replace(recipe, learning_rate=rate, epochs=epochs, steps=0), found.describe()


def tuned_recipe(
    config: DistillConfig, prepared: Prepared, starts: Starts, folder: RunFolder, progress: Progress
) -> tuple[Recipe, str]:
    """The recipe, tuned on the starting rows where that is asked for, and how it was found."""
    if config.tune:
        return found_recipe(config.recipe, prepared, [starts.rows], folder, progress)
    if not config.tune_rates:
        return config.recipe, "as given"
    progress.say(OLD_RATES)
    found = tuned(config.recipe, config.tune_rates, prepared, starts.untouched, folder)
    tried = ", ".join(
        f"{rate:g}: {'diverges' if nll is None else f'{nll:.3f}'}" for rate, nll in found["nll"]
    )
    progress.say(
        f"learning rate {found['learning_rate']:g}, by validation NLL after training on the "
        f"untouched starting rows ({tried})"
    )
    recipe = replace(config.recipe, learning_rate=found["learning_rate"])
    return recipe, f"learning rate {recipe.learning_rate:g} of {len(found['nll'])} tried"


def checked_engine(
    config: DistillConfig,
    prepared: Prepared,
    starts: Starts,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
) -> Engine:
    """The engine asked for, or the one that the doctor's short check finds right."""
    outer = config.outer
    asked = None if outer.engine == "auto" else outer.engine
    eps = outer.fd_eps if asked in ("first-order", "one-sided") else None

    def check() -> dict[str, Any]:
        progress.say("checking the meta-gradient on two batches ...")
        diagnosis = diagnose(
            prepared.model,
            recipe,
            starts.pseudo.batches(min(recipe.batch_size, CHECKED), 2, seed=1),
            prepared.model.embed(starts.pseudo.ids).to(torch.float32),
            thorough=False,
            asked=(asked, eps) if asked and eps else None,
        )
        diagnosis.require(asked, eps)
        assert diagnosis.verdict is not None  # `require` has raised otherwise
        return {
            "engine": asked or diagnosis.verdict.engine,
            "eps": outer.fd_eps if asked else diagnosis.verdict.eps,
            "reason": "as asked for" if asked else diagnosis.reason,
        }

    found = folder.once("doctor", check)
    step = f", eps {found['eps']:g}" if found["eps"] else ""
    progress.say(f"meta-gradient engine: {found['engine']}{step} ({found['reason'].rstrip('.')})")
    return make_engine(found["engine"], found["eps"] or outer.fd_eps)


def ask_agreement(distiller: Distiller, folder: RunFolder, progress: Progress) -> None:
    """Say how far the meta-gradients of several orders agree, before anything is learned; once."""
    config = distiller.config
    begun = (distiller.folder / "state.safetensors").is_file()
    if not config.agreement or not config.outer_steps or begun:
        return
    rows = len(distiller.starts.rows)
    found = folder.once("agreement", lambda: measure(distiller, rows).to_dict())
    progress.say(found["said"])


def recorded_experts(
    config: DistillConfig, prepared: Prepared, folder: RunFolder, progress: Progress
) -> list[Expert]:
    """Record the expert trajectories of a run, or read those that are there."""
    settings = config.expert
    recipe = settings.recipe(config.recipe)
    if settings.expert_from:
        return first(lambda: _imported(config, prepared, folder, recipe))
    digests = [example.digest for example in prepared.train.examples]
    if not (folder.path / "experts" / "0" / "manifest.json").is_file():
        rows = len(draw(prepared.train, config.size, config.seed))
        engine = likely(config.outer.engine, config.model.low)
        inner = config.outer.segments * window_of(config.outer, config.recipe, rows)[1]
        plan = plan_experts(
            prepared.model,
            list(prepared.train.rows),
            recipe,
            settings.snapshot_every,
            settings.experts,
            config.recipe,
            rows,
            config.outer.outer_steps * inner * PASSES[engine],
        )
        progress.say(plan.describe())

    def record(number: int) -> Expert:
        total = recipe.total_steps(len(prepared.train))
        with progress.stage(f"expert {number + 1}/{settings.experts}", total) as tick:
            return record_expert(
                prepared.model,
                prepared.train.rows,
                digests,
                recipe,
                seed=_expert_seed(folder, config.seed, number),
                every=settings.snapshot_every,
                folder=folder.path / "experts" / str(number),
                pad_id=prepared.model.tokenizer.pad_token_id,
                progress=lambda done, _, loss: tick(done, loss),
                held_out=lambda theta: mean_nll(prepared.model, theta, prepared.development.rows),
            )

    return [*spread(range(settings.experts), record)]


def _expert_seed(folder: RunFolder, seed: int, number: int) -> int:
    """LoRA's and the order's seed of an expert; of one that was begun before, its own."""
    manifest = folder.path / "experts" / str(number) / "manifest.json"
    if manifest.is_file():
        return int(read_json(manifest)["made_with"]["seed"])
    return EXPERT_SEED + 100 * seed + number


def _imported(
    config: DistillConfig, prepared: Prepared, folder: RunFolder, recipe: Recipe
) -> list[Expert]:
    found = []
    for number, source in enumerate(config.expert.expert_from):
        place = folder.path / "experts" / str(number)
        found.append(import_checkpoints(prepared.model, Path(source), place, recipe))
    return found
