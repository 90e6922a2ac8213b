"""Can prompts carry it? Overfit one training of the seeds, three ways.

    python experiments/capacity.py --data FOLDER [--rows 32] [--outer-steps 40] [--out FOLDER]

One segment is held fixed (LoRA's initial values, batches, target rows). It is overfitted by free
vectors (`soft`), by the simplex over candidate tokens, and by single swaps of a token: the swap
that the meta-gradient at the current text expects most of is tried on the segment itself, and kept
if its target loss falls. What cannot be gained here cannot be gained anywhere: if soft gains
nothing, the objective or the learnable part is wrong; if soft gains and text does not, projection
is.

The losses are of the segment's own target rows (what is overfitted), and of validation rows after
the same training; test rows are not read. FOLDER holds ARC-Easy's train.jsonl and
validation.jsonl. Each of the three is kept, and every swap tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stage import opened, parser
from torch import Tensor

import nacd
from nacd.distillation.learn import Distiller, draw, make_starts
from nacd.distillation.outer import Segment
from nacd.distillation.text import slot_ids
from nacd.meta import make_engine, meta_gradient
from nacd.store.files import write_json
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import mean_nll

RECIPE = nacd.Recipe(batch_size=8, epochs=1, learning_rate=2e-3, shuffle=False)


class Overfitting:
    """One segment, and what a table of vectors or a text makes of it."""

    def __init__(self, distiller: Distiller):
        self.distiller = distiller
        self.segment: Segment = distiller.segments(0, 0)
        self.pseudo = distiller.starts.pseudo
        self.rate = distiller.outer.log_rate.float()

    def nll(self, vectors: Tensor) -> dict[str, float]:
        """Losses after the segment's training on vectors (Q, d)."""
        model, prepared = self.distiller.model, self.distiller.prepared
        batches = [self.pseudo.batch(rows) for rows in self.segment.order]
        at, _ = self.segment.loop.run(self.segment.start, batches, self.rate, vectors)
        return {
            "target": self.segment.objective(at.theta)[0],
            "development": mean_nll(model, at.theta, prepared.development.rows),
        }

    def target(self, ids: Tensor) -> float:
        """The target loss alone, of a text's ids (Q,)."""
        batches = [self.pseudo.batch(rows) for rows in self.segment.order]
        at, _ = self.segment.loop.run(self.segment.start, batches, self.rate, self.embedded(ids))
        return mean_nll(self.distiller.model, at.theta, self.distiller.prepared.target.rows)

    def settled(self, ids: Tensor) -> Tensor:
        """The ids (Q,) of the text that ids (Q,) make."""
        return slot_ids(self.pseudo, self.distiller.text(ids))

    def embedded(self, ids: Tensor) -> Tensor:
        """The vectors (Q, d) of ids (Q,)."""
        return self.distiller.model.embed(ids).float()

    def gradient(self, ids: Tensor) -> Tensor:
        """The meta-gradient (Q, d) at a text."""
        engine, outer = self.distiller.outer.engine, self.distiller.outer
        batches = [self.pseudo.batch(rows) for rows in self.segment.order]
        found = meta_gradient(
            self.segment.loop,
            self.segment.start,
            batches,
            self.rate,
            self.embedded(ids),
            self.segment.objective,
            engine,
            trim=outer.config.trim,
        )
        return found.vectors

    def learn(self, steps: int, tick: Callable[[int, float], None]) -> dict[str, Any]:
        """Overfit by the outer loop; the losses of the vectors and of their text."""
        outer = self.distiller.outer
        for _ in range(steps):
            row = outer.step([self.segment])
            tick(outer.done, row["objective"])
        ids = self.settled(outer.projection.tokens())
        changed = float((ids != self.pseudo.ids).float().mean())
        text = self.nll(self.embedded(ids))
        return {"soft": self.nll(outer.vectors()), "text": text, "changed": changed}

    def swap(self, tries: int, state: Path, tick: Callable[[int, float], None]) -> dict[str, Any]:
        """Single swaps, most promising first; kept where the target loss falls.

        Every try is written to `state`, from which a run goes on.
        """
        table, allowed = self.distiller.model.table, self.distiller.allowed
        if state.is_file():
            at = json.loads(state.read_text())
        else:
            ids = self.pseudo.ids
            at = {"ids": ids.tolist(), "best": self.target(ids), "kept": 0, "tried": [], "next": []}
        ids = torch.tensor(at["ids"])
        while len(at["tried"]) < tries:
            if not at["next"]:
                slope = self.gradient(ids)
                expected = slope @ table.float().T  # first-order change of the loss, (Q, V)
                expected -= expected.gather(1, ids[:, None].to(expected.device))
                expected[:, ~allowed] = torch.inf
                least, token = expected.min(1)  # the best swap of every slot
                ranked = [[int(q), int(token[q])] for q in least.argsort()]
                at["next"] = [pair for pair in ranked if pair not in at["tried"]]
            if not at["next"]:
                break
            slot, token = at["next"].pop(0)
            at["tried"].append([slot, token])
            other = ids.clone()
            other[slot] = token
            if torch.equal(
                self.settled(other), other
            ):  # else its text would be read as other tokens
                value = self.target(other)
                if value < at["best"]:
                    ids = other
                    at |= {"best": value, "ids": ids.tolist(), "kept": at["kept"] + 1, "next": []}
            write_json(state, at)
            tick(len(at["tried"]), at["best"])
        return {
            "text": self.nll(self.embedded(ids)),
            "changed": float((ids != self.pseudo.ids).float().mean()),
            "kept": at["kept"],
        }


def main() -> None:
    flags = parser(__doc__, rows="32", out="runs/capacity")
    flags.add_argument("--outer-steps", type=int, default=40)
    flags.add_argument("--swaps", type=int, default=100)
    options = flags.parse_args()
    progress = Progress()
    config, prepared = opened(options, progress, outer_steps=options.outer_steps)
    seeds = make_starts(prepared, draw(prepared.train, config.size, 0), config.outer.learn)
    engine = make_engine("one-sided", config.outer.fd_eps)
    folder = RunFolder(options.out)

    def overfitting(projection: Any) -> Overfitting:
        mine = replace(config, outer=replace(config.outer, projection=projection))
        return Overfitting(
            Distiller(mine, prepared, seeds, RECIPE, engine, [], options.out, progress)
        )

    def learned(projection: str) -> dict[str, Any]:
        with progress.stage(projection, options.outer_steps) as tick:
            return overfitting(projection).learn(options.outer_steps, tick)

    def swapped() -> dict[str, Any]:
        with progress.stage("swaps", options.swaps) as tick:
            return overfitting("nearest").swap(options.swaps, options.out / "tries.json", tick)

    print(f"{'':<20}{'target':>9}{'gain':>9}{'devel.':>9}{'gain':>9}{'changed':>9}", flush=True)

    def show(name: str, nll: dict[str, float], changed: float) -> None:
        cells = (f"{nll[part]:9.3f}{nll[part] - start[part]:+9.3f}" for part in start)
        print(f"{name:<20}" + "".join(cells) + f"{changed:9.1%}", flush=True)

    plain = overfitting("nearest")
    start = folder.once("seeds", lambda: plain.nll(plain.embedded(seeds.pseudo.ids)))
    show("seeds", start, 0.0)
    for projection, name in (("nearest", "soft"), ("simplex", "simplex")):
        found = folder.once(projection, lambda projection=projection: learned(projection))
        show(name, found["soft"], found["changed"])
        show(f"{name}, its text", found["text"], found["changed"])
    found = folder.once(f"swaps-{options.swaps}", swapped)
    show(f"{options.swaps} swaps, {found['kept']} kept", found["text"], found["changed"])
    print(
        f"rows {len(seeds.rows)}, target rows {len(prepared.target)}, "
        f"{len(plain.segment.order)} inner steps, {options.outer_steps} outer steps"
    )


if __name__ == "__main__":
    main()
