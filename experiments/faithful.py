"""The paper's own method: do tokens change, and at which step size?

    python experiments/faithful.py --data FOLDER [--rows 24] [--step-sizes 0.02 0.1 0.5]

Trajectory matching with free vectors, the neighbour regulariser and the nearest token at the end
(`--objective trajectory --projection nearest --beta B`), by a shuffled recipe of several epochs.
One expert on all rows serves all step sizes. After each outer step: the matching loss, how far the
vectors have moved (root mean square, in units of the embedding rows' norm), and the share of tokens
whose nearest row is another one. FOLDER holds ARC-Easy's train.jsonl and validation.jsonl; report
rows are not read.
"""

from __future__ import annotations

from dataclasses import replace

from stage import opened, parser

import nacd
from nacd.distillation.learn import Distiller, draw, make_starts
from nacd.distillation.stages import recorded_experts
from nacd.meta import make_engine
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress


def main() -> None:
    flags = parser(__doc__, rows="24", out="runs/faithful")
    flags.add_argument("--step-sizes", type=float, nargs="+", default=[0.02, 0.1, 0.5])
    flags.add_argument("--outer-steps", type=int, default=4)
    flags.add_argument("--epochs", type=float, default=2.0)
    flags.add_argument("--expert-steps", type=int, default=16)
    flags.add_argument("--beta", type=float, default=0.1)
    options = flags.parse_args()
    progress = Progress()
    config, prepared = opened(options, progress)
    outer = replace(
        config.outer,
        objective="trajectory",
        projection="nearest",
        beta=options.beta,
        outer_steps=options.outer_steps,
    )
    steps = options.expert_steps
    expert = replace(config.expert, expert_steps=steps, snapshot_every=steps)
    recipe = nacd.Recipe(batch_size=8, epochs=options.epochs, learning_rate=5e-4)
    config = replace(config, outer=outer, expert=expert, recipe=recipe)
    seeds = make_starts(prepared, draw(prepared.train, config.size, 0), outer.learn)
    experts = recorded_experts(config, prepared, RunFolder(options.out), progress)
    engine = make_engine("one-sided", outer.fd_eps)
    own = seeds.pseudo.ids
    print(f"{len(seeds.rows)} rows, {len(own)} tokens, {recipe.total_steps(len(seeds.rows))} steps")
    print(f"{'step size':>9}{'outer step':>12}{'matching':>10}{'moved':>8}{'changed':>9}")
    for size in options.step_sizes:
        tried = replace(config, outer=replace(outer, step_size=size))
        folder = options.out / f"{size:g}"
        distiller = Distiller(
            tried, prepared, seeds, recipe, engine, experts, folder, Progress(quiet=True)
        )
        learner = distiller.outer
        first, norm = learner.vectors().clone(), learner.scale**0.5
        for step in range(options.outer_steps):
            row = learner.step([distiller.segment(step, 0)])
            moved = float((learner.vectors() - first).norm(dim=1).square().mean().sqrt()) / norm
            changed = float((learner.projection.tokens().cpu() != own).float().mean())
            print(
                f"{size:9g}{step + 1:12}{row['objective']:10.3f}{moved:8.2f}{changed:9.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
