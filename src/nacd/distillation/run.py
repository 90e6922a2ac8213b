"""One distillation: from a configuration to distilled rows, not yet exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nacd.config import DistillConfig, decided
from nacd.config.recipe import Recipe
from nacd.config.settings import to_dict
from nacd.data import Splits
from nacd.distillation.learn import Distiller, Learned, Starts, make_starts, refuse_without_rows
from nacd.distillation.stages import (
    ask_agreement,
    check_trainings,
    checked_engine,
    chosen_rows,
    open_run,
    recorded_experts,
    tuned_recipe,
)
from nacd.distillation.text import TextRow, share_changed
from nacd.experts import Expert
from nacd.model.lora import resolve_device
from nacd.model.prepare import Prepared, prepare, read_splits
from nacd.selection import check_method, check_rows
from nacd.store.clock import StageClock
from nacd.store.run import RunFolder
from nacd.store.tracking import tracking
from nacd.terminal.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """What learning left, before anything is exported or compared."""

    config: DistillConfig
    folder: RunFolder
    prepared: Prepared
    starts: Starts
    recipe: Recipe
    """What the table's rows are trained with."""
    found_by: str
    """How the recipe was found: `as given`, or a sentence."""
    learned: Learned
    text: list[TextRow]
    """The distilled rows."""
    changed: float
    """Share of all learnable tokens that are not the starting rows' any more."""
    distiller: Distiller
    engine: str
    """Name of the meta-gradient engine."""
    clock: StageClock

    @property
    def final(self) -> Recipe:
        """The recipe with the learned learning rate."""
        return replace(self.recipe, learning_rate=self.learned.learning_rate)


def learn_text(
    config: DistillConfig,
    *,
    splits: Splits | None = None,
    prepared: Prepared | None = None,
    progress: Progress | None = None,
    before: Callable[[Prepared, RunFolder, StageClock], None] | None = None,
) -> Outcome:
    """Learn distilled rows in a run folder, or go on where learning stopped.

    Args:
        config: everything that may be set.
        splits: rows already in hand, instead of those that the configuration names.
        prepared: a model and rows already in hand; its LoRA is overwritten.
        progress: display.
        before: called once the model and the rows are there, before the first long step.

    Raises:
        UserError: a wrong input; nothing already made is lost.
    """
    progress = progress or Progress()
    config.check()
    config = replace(config, outer=decided(config.outer, config.data))
    check_method(config.start_by, config.selection, "--start-by")
    splits = read_splits(config.data) if splits is None else splits
    check_rows(config.start_by, config.selection, splits.train, splits.target, "--start-by")
    folder = open_run(config, splits)
    clock = StageClock(folder.path / "stages.json", resolve_device(config.model.device))
    if prepared is None:
        with clock.stage("loading the model and encoding rows"):
            prepared = prepare(config.model, config.data, progress.say, splits, folder.memory)
    check_trainings(config, prepared)
    if before is not None:
        before(prepared, folder, clock)
    with clock.stage("choosing starting rows"):
        indices = chosen_rows(config, prepared, folder, progress)
    starts = make_starts(prepared, indices, config.outer.learn)
    config.recipe.check_rows(len(starts.rows))
    refuse_without_rows(config, prepared, starts)
    tokens = sum(len(row) for row in starts.rows)
    progress.say(
        f"{len(prepared.train)} training rows; {len(starts.rows)} starting rows, {tokens} tokens, "
        f"{starts.pseudo.size} of them learnable"
    )
    with clock.stage("tuning the recipe"):
        recipe, found_by = tuned_recipe(config, prepared, starts, folder, progress)
    with clock.stage("checking the meta-gradient"):
        engine = checked_engine(config, prepared, starts, recipe, folder, progress)
    experts: list[Expert] = []
    if config.outer.objective == "trajectory":
        with clock.stage("recording experts"):
            experts = recorded_experts(config, prepared, folder, progress)
    with tracking(config.track, folder.path, to_dict(config)) as log:
        distiller = Distiller(
            config,
            prepared,
            starts,
            recipe,
            engine,
            experts,
            folder.path / "distill",
            progress,
            log,
        )
        with clock.stage("comparing meta-gradients"):
            ask_agreement(distiller, folder, progress)
        with clock.stage("learning"):
            learned = distiller.run()
    if learned.stopped:
        progress.say(f"Learning stopped early: {learned.stopped}")
    text = distiller.text(learned.ids)
    changed = share_changed(starts.pseudo, text)
    return Outcome(
        config,
        folder,
        prepared,
        starts,
        recipe,
        found_by,
        learned,
        text,
        changed,
        distiller,
        engine.name,
        clock,
    )
