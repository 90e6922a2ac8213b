"""The rows that each method trains on, for one budget: chosen, distilled, or all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nacd.comparison.failures import Failure, failure
from nacd.comparison.ladder import random_prompts
from nacd.comparison.transfer import other_prompts, surviving_boundaries
from nacd.config import DistillConfig, with_judge
from nacd.config.compare import DISTILLED, LEARNED, CompareConfig
from nacd.config.recipe import Recipe, recipe_of
from nacd.config.settings import from_dict, to_dict
from nacd.data import Encoded, Example, collate
from nacd.data.rows import Rows, learnable_rows
from nacd.data.split import Splits
from nacd.distillation.learn import draw
from nacd.distillation.pool import students, window_of
from nacd.distillation.run import Outcome, learn_text
from nacd.distillation.stages import ROUNDING, SAID
from nacd.distillation.text import choosable
from nacd.errors import UserError
from nacd.meta import PASSES
from nacd.model.prepare import Prepared
from nacd.selection import METHODS, Task, choose_once, forward_flops
from nacd.store.files import read_json, sha256_of
from nacd.store.folder import read_run
from nacd.store.processes import count, spread
from nacd.store.run import RunFolder, differences
from nacd.terminal.progress import Progress


@dataclass(frozen=True)
class Training:
    """One training: the rows under a target's tokenizer, and what is particular to it."""

    data: Rows | None
    """None trains nothing."""
    vectors: Tensor | None = None
    """Soft prompts (Q, d) for the rows' slots."""
    learning_rate: float | None = None
    """If not the recipe's."""
    epochs: float | None = None
    """If not the recipe's own length."""
    steps: int | None = None
    in_order: bool = False
    """Rows that were learned or chosen in an order: visited in it, where the recipe does not
    shuffle."""
    tokens_changed: float | None = None
    boundaries_kept: float | None = None
    """Share of the source's token boundaries in the learned prompts that the target has too."""

    @property
    def digest(self) -> str:
        """A hash of the rows, and of the vectors in their slots."""
        return (self.data or Rows((), 0)).digest(self.vectors)


@dataclass(frozen=True)
class RowSet:
    """A row of the table: which trainings stand behind it, and what choosing its rows cost."""

    method: str
    training: Callable[[Prepared, int], Training]
    """(target model and rows, training seed) -> training."""
    trainings: int
    choosing_seconds: float | None = None
    choosing_flops: float | None = None
    draws: int = 1
    """Distillations behind it, that the trainings take in turn."""
    source_only: bool = False
    failed: Failure | None = None
    """Why its rows could not be had."""


def rowsets(
    config: CompareConfig,
    budget: str,
    source: Prepared,
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
) -> list[RowSet]:
    """Every row of the table at one budget; one whose rows cannot be had is marked as failed.

    Args:
        config: the grid.
        budget: one of its budgets.
        source: the model that chooses and distils, with its rows.
        splits: the rows as they were read.
        recipe: the training at this budget, its learning rate tuned.
        folder: keeps every choice and every distillation.
        progress: display.
    """
    made: list[RowSet] = []
    outcomes: list[Outcome] | Failure | None = None
    for method in config.methods:
        if method in DISTILLED and outcomes is None:
            progress.say(f"budget {budget}: distilling")
            try:
                outcomes = _distilled(config, budget, source, splits, recipe, folder, progress)
            except Exception as error:  # the other rows go on
                outcomes = failure(error)
        try:
            if method not in DISTILLED:
                made += _plain(config, budget, method, source, recipe, folder, progress)
            elif isinstance(outcomes, list):
                made += [_of_distillation(config, method, outcomes, source)]
            else:
                assert outcomes is not None
                made += [_failed(config, method, outcomes)]
        except Exception as error:
            made += [_failed(config, method, failure(error))]
        if made[-1].failed:
            progress.say(f"{method}: failed: {made[-1].failed.why}")
    return made


def _failed(config: CompareConfig, method: str, found: Failure) -> RowSet:
    def none(_: Prepared, __: int) -> Training:
        raise UserError(found.why)

    return RowSet(method, none, config.trainings, failed=found)


def _plain(
    config: CompareConfig,
    budget: str,
    method: str,
    source: Prepared,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
) -> list[RowSet]:
    """Rows without anything learned: none, random, chosen, all."""
    examples = source.train.examples
    if method == "zero-shot":
        return [RowSet(method, lambda _, __: Training(None), 1)]
    if method == "random":

        def drawn(target: Prepared, seed: int) -> Training:
            rows = draw(source.train, budget, 10_000 + 100 * config.seed + seed)
            return Training(_encoded([examples[i] for i in rows], target))

        return [RowSet(method, drawn, config.trainings, 0.0, 0.0)]
    if method == "full":
        steps = recipe.total_steps(len(draw(source.train, budget, config.seed)))

        def full(target: Prepared, _: int, steps: int | None = None) -> Training:
            data = Rows.of(target.train.rows, target.model.tokenizer.pad_token_id)
            return Training(data, steps=steps, epochs=None if steps else config.full_epochs)

        equal = partial(full, steps=steps)
        return [
            RowSet("full-equal-steps", equal, config.trainings),
            RowSet("full", full, config.full_trainings),
        ]
    place = folder.path / "choosing" / budget / method
    progress.say(f"budget {budget}: choosing by {method}")
    selection = with_judge(config.selection, config.data)
    task = Task(source, recipe, selection, config.seed, place, progress, budget)
    found = choose_once(folder, f"choosing/{budget}/{method}/chosen", task, method, "--methods")
    chosen = [examples[i] for i in found["rows"]]

    def training(target: Prepared, _: int) -> Training:
        return Training(_encoded(chosen, target), in_order=METHODS[method].orders)

    return [RowSet(method, training, config.trainings, found["seconds"], found["flops"])]


def _distilled(
    config: CompareConfig,
    budget: str,
    source: Prepared,
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
) -> list[Outcome]:
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
    for budget in config.budgets:
        for run in config.runs:
            _of_run(config, budget, Path(run))
    return {run: sha256_of(Path(run) / "dataset" / "train.jsonl") for run in config.runs}


def _of_run(config: CompareConfig, budget: str, run: Path) -> DistillConfig:
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


def _of_distillation(
    config: CompareConfig, method: str, outcomes: Sequence[Outcome], source: Prepared
) -> RowSet:
    """A row that a distillation, or its starting rows alone, gives."""

    def training(target: Prepared, seed: int) -> Training:
        outcome = outcomes[seed % len(outcomes)]
        tokenizer = target.model.tokenizer
        in_order = not method.endswith("-shuffled")
        if method == "soft":
            return Training(
                outcome.seeds.pseudo,
                in_order=True,
                vectors=outcome.learned.soft.to(target.model.device),
                learning_rate=outcome.learned.soft_learning_rate,
            )
        seeds = outcome.seeds.examples
        rows: Sequence[Example] = seeds
        if method in LEARNED:
            rows = [row.example for row in outcome.text]
        elif method == "other-prompts":
            rows = other_prompts(seeds, seed)
        encoded: list[Encoded] = [target.template.as_exported(row) for row in rows]
        if method == "random-prompts":
            pseudo = learnable_rows(encoded, outcome.config.outer.learn, tokenizer.pad_token_id)
            allowed = choosable(tokenizer, len(target.model.table))
            return Training(
                random_prompts(pseudo, allowed, seed), in_order=True, tokens_changed=1.0
            )
        data = Rows.of(encoded, tokenizer.pad_token_id)
        if method not in LEARNED:
            return Training(
                data,
                in_order=in_order,
                tokens_changed=1.0 if method == "other-prompts" else 0.0,
            )
        kept = surviving_boundaries([row.prompt for row in rows], source.model.tokenizer, tokenizer)
        return Training(
            data,
            in_order=in_order,
            learning_rate=outcome.learned.learning_rate if target is source else None,
            tokens_changed=outcome.changed,
            boundaries_kept=kept,
        )

    learned = method in LEARNED
    return RowSet(
        method,
        training,
        config.trainings,
        statistics.fmean(_seconds(outcome, learned) for outcome in outcomes),
        statistics.fmean(
            _chosen(outcome)["flops"] + (_learning_flops(outcome) if learned else 0.0)
            for outcome in outcomes
        ),
        draws=len(outcomes),
        source_only=method == "soft",
    )


def _seconds(outcome: Outcome, learned: bool) -> float:
    """What a distillation took until its rows were there; for its starting rows, choosing alone."""
    spent = {stage["name"]: stage["seconds"] for stage in outcome.clock.stages}
    free = _chosen(outcome)["method"] == "random"
    choosing = (
        0.0 if free else spent.get("choosing starting rows", spent.get("choosing seed rows", 0.0))
    )
    learning = ("recording experts", "checking the meta-gradient", "comparing meta-gradients")
    learning = (*learning, "learning")
    return choosing + (sum(spent.get(name, 0.0) for name in learning) if learned else 0.0)


def _chosen(outcome: Outcome) -> dict[str, Any]:
    """How its starting rows were chosen."""
    return read_json(outcome.folder.path / "seeds.json")


def _learning_flops(outcome: Outcome) -> float:
    """Operations of a distillation: its experts, its outer steps, its looks at validation rows."""
    prepared, outer, recipe = outcome.prepared, outcome.config.outer, outcome.recipe
    rows = outcome.seeds.rows
    total = recipe.total_steps(len(rows))
    ahead, steps = window_of(outer, recipe, len(rows))
    pad = prepared.model.tokenizer.pad_token_id
    batch = collate(rows, pad).tokens / len(rows) * recipe.batch_size
    train = sum(len(row) for row in prepared.train.rows)
    mean = train / len(prepared.train)

    segment, recording = steps * batch * PASSES[outcome.engine], 0.0
    if outer.objective == "target-loss":
        segment += sum(len(row) for row in prepared.target.rows)
    elif outer.objective == "train-loss":
        segment += outer.objective_rows * mean
    elif not outcome.config.expert.expert_from:
        expert = outcome.config.expert.recipe(recipe)
        seen = expert.total_steps(len(prepared.train)) * expert.batch_size * mean
        recording = outcome.config.expert.experts * seen
    metrics = outcome.learned.metrics
    done = metrics[-1]["outer_step"] if metrics else 0
    looks = sum("development_text" in row for row in metrics)
    # soft prompts and text, each trained and then read without a gradient
    read = sum(len(row) for row in prepared.development.rows) / 2
    looking = looks * 2 * outer.check_trainings * (total * batch + read)
    pool = students(outer, done) * ahead * batch
    segments = done * outer.segments + (outer.agreement if done else 0)
    passes = recording + segments * segment + pool + looking
    return 2 * forward_flops(prepared.model, passes)


def tuning_data(
    config: CompareConfig, budget: str, target: Prepared, source: Prepared, seed: int
) -> Rows:
    """Random rows on which a target's recipe is tuned."""
    rows = [source.train.examples[i] for i in draw(source.train, budget, seed)]
    return _encoded(rows, target)


def _encoded(rows: Sequence[Example], target: Prepared) -> Rows:
    """Real rows under a target's template and tokenizer, labelled as exported rows are."""
    pad = target.model.tokenizer.pad_token_id
    return Rows.of([target.template.as_exported(example) for example in rows], pad)


def of_training(recipe: Recipe, training: Training) -> Recipe:
    """The recipe of one training; rows without an order of their own are always shuffled."""
    if not training.in_order:
        recipe = replace(recipe, shuffle=True)
    if training.learning_rate is not None:
        recipe = replace(recipe, learning_rate=training.learning_rate)
    if training.epochs is not None:
        recipe = replace(recipe, steps=0, epochs=training.epochs)
    return recipe
