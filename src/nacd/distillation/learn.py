"""The main job: starting rows, experts where they are needed, the outer loop, what comes out.

This module knows files and the order of things; the mathematics is in `nacd.meta` and
`nacd.distillation`. Everything in it goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacd.config import Budget, DistillConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Example
from nacd.data.rows import Rows, learnable_rows
from nacd.distillation.candidates import make_projection
from nacd.distillation.outer import DivergedError, OuterConfig, OuterLoop, Segment, rate_of
from nacd.distillation.pool import Pool, window_of
from nacd.distillation.segments import segment_maker, windowed
from nacd.distillation.text import (
    RoundTrip,
    TextRow,
    choosable,
    share_changed,
    slot_ids,
    to_text,
)
from nacd.errors import UserError
from nacd.experts import Expert
from nacd.meta import Engine
from nacd.model.prepare import Part, Prepared
from nacd.selection.random import random_order
from nacd.store.files import read_json_lines, read_tensors, write_json_lines, write_tensors
from nacd.store.processes import first, spread, writes
from nacd.store.tracking import Log, silent
from nacd.terminal.progress import Progress
from nacd.training.inner import InnerLoop
from nacd.training.student import CHECK_SEED, mean_nll, train_student

ALTERNATIVES = 6
"""Tokens that a place may take instead, where a text does not survive re-encoding."""


@dataclass(frozen=True)
class Starts:
    """The starting rows of a run."""

    examples: tuple[Example, ...]
    rows: tuple[Encoded, ...]
    """Encoded with the last turn as the only label, as they are exported."""
    pseudo: Rows
    """With learnable slots, and with a prefix where that is what is learned."""

    @property
    def untouched(self) -> Rows:
        """The rows as they are, nothing learnable in them."""
        return Rows.of(self.rows, self.pseudo.pad_id)


def draw(train: Part, budget: Budget, seed: int) -> list[int]:
    """Indices of a seeded random draw of training rows of the budget's size."""
    return budget.rows(train.rows, random_order(len(train), seed))


def make_starts(prepared: Prepared, indices: Sequence[int], learn: str) -> Starts:
    """Starting rows with their learnable slots."""
    examples = tuple(prepared.train.examples[i] for i in indices)
    rows = tuple(prepared.template.as_exported(example) for example in examples)
    pseudo = learnable_rows(rows, learn, prepared.model.tokenizer.pad_token_id)
    return Starts(examples, rows, pseudo)


@dataclass
class Learned:
    """What the outer loop leaves."""

    ids: Tensor
    """Token ids of the exported rows' slots, (Q,); the starting rows' where no text was better."""
    last_ids: Tensor
    """Token ids at the last check on the validation rows, (Q,)."""
    soft: Tensor
    """The vectors with the lowest loss on validation rows, (Q, d)."""
    learning_rate: float
    """The student's, at the outer step of the exported text."""
    soft_learning_rate: float
    """The student's, at the outer step of `soft`."""
    last_learning_rate: float
    """The student's, at the last check on the validation rows."""
    best_step: int
    """Outer step of the exported text; 0: the starting rows themselves."""
    soft_step: int
    """Outer step of `soft`; 0: the vectors that learning starts from."""
    stopped: str | None
    """Why learning ended before its time, or None."""
    metrics: list[dict[str, Any]]
    seconds: float


class Distiller:
    """Runs the outer loop in a run folder, with checks on the validation rows, and resumes it."""

    def __init__(
        self,
        config: DistillConfig,
        prepared: Prepared,
        starts: Starts,
        recipe: Recipe,
        engine: Engine,
        experts: Sequence[Expert],
        folder: Path,
        progress: Progress,
        log: Log = silent,
    ):
        self.log = log
        self.config, self.prepared, self.starts = config.outer, prepared, starts
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self.model = prepared.model
        table = self.model.table
        self.allowed = choosable(self.model.tokenizer, len(table)).to(table.device)
        projection, step_size = make_projection(
            self.model, starts.pseudo, self.config, self.allowed
        )
        begun = projection.parameters.cpu(), projection.kept()
        parameters, kept = first(lambda: begun)  # a GPU may guess otherwise in each process
        projection.parameters = parameters.to(self.model.device)
        projection.restore(kept)
        self.outer = OuterLoop(
            starts.pseudo,
            projection,
            engine,
            OuterConfig(
                step_size,
                projection.shared_scale,
                self.config.rate_step_size,
                self.config.beta,
                self.config.metric,
                self.config.trim,
            ),
            table,
            self.allowed,
            recipe.learning_rate,
            self.config.outer_steps,
        )
        self.segments = segment_maker(
            prepared, recipe, self.config, len(starts.rows), experts, pool_of(prepared, starts)
        )
        ahead, _ = window_of(self.config, recipe, len(starts.rows))
        self.pool = None
        if ahead:
            loop = InnerLoop(self.model, recipe, recipe.total_steps(len(starts.rows)))
            self.pool = Pool(loop, len(starts.rows), ahead, self.config, folder / "pool")
        template = prepared.template
        self.trips = [
            RoundTrip(template, self.model.tokenizer, example, row)
            for example, row in zip(starts.examples, starts.pseudo.rows, strict=True)
        ]
        fixed = sum(not trip.reversible for trip in self.trips)
        if fixed:
            progress.say(
                f"{fixed} of {len(self.trips)} starting rows do not come back from their own "
                "tokens; their text stays as it is"
            )
        self._scores: dict[tuple[float | tuple[int, ...], ...], float] = {}

    def segment(self, step: int, part: int) -> Segment:
        """An inner loop of an outer step: whole, or the window of it that is differentiated."""
        whole = self.segments(step, part)
        if self.config.objective == "trajectory":
            return whole
        if self.pool is not None:
            place = step * self.config.segments + part
            return self.pool.late(whole, step, place, self.outer)
        return windowed(whole, self.config.window, step, self.outer)

    # --- text -------------------------------------------------------------------------------

    def text(self, ids: Tensor) -> list[TextRow]:
        """Token ids (Q,) as text rows that survive the round trip."""

        @cache
        def alternatives(slot: int) -> list[int]:
            return self.outer.projection.alternatives(slot, ALTERNATIVES)

        return to_text(
            self.starts.pseudo, ids.cpu(), self.starts.examples, self.trips, alternatives
        )

    def settled(self, rows: Sequence[TextRow]) -> Rows:
        """Text rows as training data: exactly what a tokenizer makes of the exported text."""
        return Rows.of([row.encoded for row in rows], self.starts.pseudo.pad_id)

    # --- validation -------------------------------------------------------------------------

    def _nll(self, *sets: tuple[Rows, Tensor | None]) -> list[float]:
        """The loss on validation rows of sets, each with its vectors: a mean over trainings."""
        recipe = replace(self.recipe, learning_rate=self.outer.learning_rate)
        count = self.config.check_trainings

        def score(training: tuple[Rows, Tensor | None, int]) -> float:
            data, vectors, seed = training
            theta = train_student(self.model, recipe, data, seed, vectors=vectors)
            return mean_nll(self.model, theta, self.prepared.development.rows)

        trainings = [(*each, CHECK_SEED + k) for each in sets for k in range(count)]
        scores = [*spread(trainings, score)]
        return [math.fsum(scores[i : i + count]) / count for i in range(0, len(scores), count)]

    def check(self, ids: Tensor) -> tuple[dict[str, float], Tensor]:
        """Losses on validation rows of the soft prompts and of ids (Q,) as text; its ids (Q,)."""
        rows = self.text(ids)
        data = self.settled(rows)
        key = (self.outer.learning_rate, *(row.ids for row in data.rows))
        sets = [(self.starts.pseudo, self.outer.vectors()), (data, None)]
        soft, *anew = self._nll(*sets[: 1 if key in self._scores else 2])
        text = self._scores[key] = anew[0] if anew else self._scores[key]
        return {
            "development_soft": soft,
            "development_text": text,
            "soft_to_text_gap": text - soft,
            "tokens_changed": share_changed(self.starts.pseudo, rows),
            "tokens_repaired": float(sum(row.repaired for row in rows)),
        }, slot_ids(self.starts.pseudo, rows)

    # --- state ------------------------------------------------------------------------------

    def _save(self, metrics: list[dict[str, Any]], best: dict[str, Tensor]) -> None:
        # metrics first: killed in between, the line too many is dropped by `restore`
        write_json_lines(self.folder / "metrics.jsonl", metrics)
        write_tensors(
            self.folder / "state.safetensors",
            self.outer.state()
            | {f"best.{name}": tensor for name, tensor in best.items()}
            | {"start": self.starts.pseudo.ids},
        )

    def restore(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
        """Go back to the saved state: its metrics and the best so far, or None without one.

        Raises:
            UserError: the state is damaged, of other starting rows, or an older version's that
                lacks what is needed; or metrics are lost.
        """
        file = self.folder / "state.safetensors"
        if not file.is_file():
            return None
        state, _ = read_tensors(file)
        start = state.pop("start", self.starts.pseudo.ids)
        if not torch.equal(start, self.starts.pseudo.ids):
            raise UserError(
                f"{file}: of other starting rows than this run's; bring its own back, or delete "
                f"{self.folder} and run the same command again to learn anew."
            )
        best = {k.removeprefix("best."): state.pop(k) for k in list(state) if k[:5] == "best."}
        if "soft_log_rate" not in best:  # an older version's
            if self.config.rate_step_size:
                raise UserError(
                    f"{file}: an older version made it, and did not keep the learning rate that "
                    "the best soft prompts were learned with; choose another --out."
                )
            best |= dict.fromkeys(("soft_log_rate", "last_log_rate"), best["log_rate"])
        wrong = [name for name, t in state.items() if not bool(torch.isfinite(t).all())]
        if wrong:
            raise UserError(
                f"{file}: {wrong[0]} holds numbers that are not finite; bring back a whole state, "
                f"or delete {self.folder} and run the same command again to learn anew."
            )
        self.outer.restore(state)
        lines = self.folder / "metrics.jsonl"
        metrics = [row for row in read_json_lines(lines) if row["outer_step"] <= self.outer.done]
        if len(metrics) <= self.outer.done:
            raise UserError(
                f"{lines}: damaged, {len(metrics)} of the {self.outer.done + 1} lines that "
                f"{file.name} beside it goes with; bring it back, or delete {self.folder} and run "
                "the same command again to learn anew."
            )
        return metrics, best

    def run(self) -> Learned:
        """Learn until the outer steps are done, or until no gradient is of use any more.

        Raises:
            UserError: training on the untouched starting rows diverges.
        """
        outer, config = self.outer, self.config
        restored = self.restore()
        if restored is None:
            began = time.perf_counter()
            first, _ = self.check(self.starts.pseudo.ids)
            if not math.isfinite(first["development_text"]):
                raise UserError(
                    f"training on the untouched starting rows diverges at --learning-rate "
                    f"{outer.learning_rate:g}: the loss on validation rows is "
                    f"{first['development_text']}; give a smaller one."
                )
            taken = time.perf_counter() - began
            metrics: list[dict[str, Any]] = [{"outer_step": 0, "seconds": taken} | first]
            best = {
                "text": torch.tensor([first["development_text"], 0.0], dtype=torch.float64),
                "soft": torch.tensor([first["development_soft"], 0.0], dtype=torch.float64),
                "ids": self.starts.pseudo.ids,
                "last_ids": self.starts.pseudo.ids,
                "vectors": outer.vectors().cpu(),
                "log_rate": outer.log_rate,
                "soft_log_rate": outer.log_rate,
                "last_log_rate": outer.log_rate,
            }
            self._save(metrics, best)
            self.log(metrics[0], 0)
        else:
            metrics, best = restored
        stopped = None
        with self.progress.stage("outer steps", config.outer_steps, done=outer.done) as tick:
            while outer.done < config.outer_steps:
                began = time.perf_counter()
                number = outer.done
                segments = [partial(self.segment, number, k) for k in range(config.segments)]
                try:
                    row: dict[str, Any] = dict(outer.step(segments))
                except DivergedError as error:
                    stopped = str(error)
                    break
                last = outer.done == config.outer_steps
                if outer.done % config.check_every == 0 or last:
                    seen, best["last_ids"] = self.check(outer.projection.tokens())
                    best["last_log_rate"] = outer.log_rate
                    row |= seen
                    self._keep_best(row, best)
                row = {"outer_step": outer.done, "seconds": time.perf_counter() - began} | row
                metrics.append(row)
                self._save(metrics, best)
                self.log(row, outer.done)
                tick(outer.done, row["objective"])
        if stopped is None and self.pool is not None and writes():
            self.pool.forget()
        return Learned(
            ids=best["ids"],
            last_ids=best["last_ids"],
            soft=best["vectors"],
            learning_rate=rate_of(best["log_rate"]),
            soft_learning_rate=rate_of(best["soft_log_rate"]),
            last_learning_rate=rate_of(best["last_log_rate"]),
            best_step=int(best["text"][1]),
            soft_step=int(best["soft"][1]),
            stopped=stopped,
            metrics=metrics,
            seconds=math.fsum(row["seconds"] for row in metrics),
        )

    def _keep_best(self, row: dict[str, Any], best: dict[str, Tensor]) -> None:
        outer = self.outer
        if _below(row["development_text"], best["text"]):
            best["text"] = torch.tensor([row["development_text"], outer.done], dtype=torch.float64)
            best["ids"] = best["last_ids"]
            best["log_rate"] = outer.log_rate
        if _below(row["development_soft"], best["soft"]):
            best["soft"] = torch.tensor([row["development_soft"], outer.done], dtype=torch.float64)
            best["vectors"] = outer.vectors().cpu()
            best["soft_log_rate"] = outer.log_rate


def _below(nll: float, best: Tensor) -> bool:
    """Whether a loss is lower than the best so far (loss, outer step); any is than one of NaN."""
    return math.isfinite(nll) and not nll >= float(best[0])


def pool_of(prepared: Prepared, starts: Starts) -> list[Encoded]:
    """The training rows that are no starting rows."""
    own = {example.digest for example in starts.examples}
    train = zip(prepared.train.examples, prepared.train.rows, strict=True)
    return [row for example, row in train if example.digest not in own]


def refuse_without_rows(config: DistillConfig, prepared: Prepared, starts: Starts) -> None:
    """Refuse an objective that has no rows to be measured on.

    Raises:
        UserError: `target-loss` without target rows, or `train-loss` where all rows start.
    """
    if config.outer.objective == "target-loss" and not len(prepared.target):
        raise UserError(
            "--objective target-loss needs target rows: raise --target-rows, or name --target."
        )
    if config.outer.objective == "train-loss" and not pool_of(prepared, starts):
        raise UserError(
            "--objective train-loss looks at training rows that are not starting rows, and there "
            "are none: give a smaller --budget, or --objective target-loss."
        )
