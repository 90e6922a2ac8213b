"""Rows of a table that a distillation gives: its starting rows, and what was learned of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nacd.comparison.rowset import RowSet, Training, encoded
from nacd.comparison.transfer import other_prompts, surviving_boundaries
from nacd.config.compare import LEARNED, CompareConfig
from nacd.costs.costs import Work, tokens_of
from nacd.data.rows import Rows, learnable_rows
from nacd.distillation.run import Outcome
from nacd.distillation.text import choosable, share_changed
from nacd.model.prepare import Prepared
from nacd.selection import forward_flops
from nacd.store.files import read_json


def random_prompts(data: Rows, allowed: Tensor, seed: int) -> Rows:
    """The same rows with random choosable tokens at the slots."""
    pool = allowed.nonzero()[:, 0].cpu().numpy()
    drawn = np.random.default_rng((seed, 29)).choice(pool, size=data.size)
    return data.with_ids(torch.from_numpy(drawn))


def of_distillation(
    config: CompareConfig, method: str, outcomes: Sequence[Outcome], source: Prepared
) -> RowSet:
    """A row that a distillation, or its starting rows alone, gives.

    Args:
        config: of the table.
        method: name of the row.
        outcomes: the distillations, which the trainings take in turn.
        source: the model that they were learned on, with its rows.
    """

    def training(target: Prepared, seed: int) -> Training:
        outcome = outcomes[seed % len(outcomes)]
        if method == "soft":
            return Training(
                outcome.starts.pseudo,
                in_order=True,
                vectors=outcome.learned.soft.to(target.model.device),
                learning_rate=outcome.learned.soft_learning_rate,
            )
        if method in LEARNED:
            return _text(outcome, method, target, source)
        return _starting(outcome, method, target, seed)

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
        label=_label(method, outcomes[0]),
    )


def last_differs(outcome: Outcome) -> bool:
    """Whether the text of the last check on validation rows is another than the exported one."""
    last = outcome.distiller.text(outcome.learned.last_ids)
    return [row.encoded for row in last] != [row.encoded for row in outcome.text]


def _text(outcome: Outcome, method: str, target: Prepared, source: Prepared) -> Training:
    """Distilled rows, at the learning rate that was learned with them on the source."""
    tokenizer, learned = target.model.tokenizer, outcome.learned
    rows, changed, rate = outcome.text, outcome.changed, learned.learning_rate
    if method == "text-last":
        rows, rate = outcome.distiller.text(learned.last_ids), learned.last_learning_rate
        changed = share_changed(outcome.starts.pseudo, rows)
    examples = [row.example for row in rows]
    prompts = [example.prompt for example in examples]
    return Training(
        encoded(examples, target),
        in_order=not method.endswith("-shuffled"),
        learning_rate=rate if target is source else None,
        tokens_changed=changed,
        boundaries_kept=surviving_boundaries(prompts, source.model.tokenizer, tokenizer),
    )


def _starting(outcome: Outcome, method: str, target: Prepared, seed: int) -> Training:
    """The starting rows: untouched, or under other prompts."""
    rows = outcome.starts.examples
    if method == "random-prompts":
        model, learn = target.model, outcome.config.outer.learn
        data = encoded(rows, target)
        learnable = learnable_rows(data.rows, learn, data.pad_id)
        allowed = choosable(model.tokenizer, len(model.table))
        prompts = random_prompts(learnable, allowed, seed)
        return Training(prompts, in_order=True, tokens_changed=1.0)
    if method == "other-prompts":
        mixed = encoded(other_prompts(rows, seed), target)
        return Training(mixed, in_order=True, tokens_changed=1.0)
    in_order = not method.endswith("-shuffled")
    return Training(encoded(rows, target), in_order=in_order, tokens_changed=0.0)


def _label(method: str, outcome: Outcome) -> str:
    """A row's name where it depends on the distillation."""
    if method == "random-prompts" and outcome.config.outer.learn != "prompt":
        return "random prefix"
    if method == "soft" and not outcome.learned.soft_step:
        return "NACD soft, at the start"
    return ""


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
    """Operations of a distillation: its experts, its outer steps, its checks on validation rows."""
    prepared, config, rows = outcome.prepared, outcome.config, outcome.starts.rows
    metrics = outcome.learned.metrics
    done = metrics[-1]["outer_step"] if metrics else 0
    checks = sum("development_text" in row for row in metrics)
    outer = replace(config.outer, engine=outcome.engine)  # in place of `auto`
    mean = tokens_of(rows) / len(rows)
    work = Work(prepared, outcome.recipe, len(rows), ONE_OF_TWO, mean)
    passes = work.learning(outer, done) + work.checking(outer, checks)
    return 2 * forward_flops(prepared.model, work.recording(config.expert, outer) + passes)


ONE_OF_TWO = 0.5
"""Operations of a pass without gradients, in those of an ordinary training step."""
