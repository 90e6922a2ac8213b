"""How much do the meta-gradients of two trainings agree, and which recipe makes them agree more?

    python experiments/agreement.py --data FOLDER [--rows 112] [--pairs 4] [--out FILE]

Every outer step learns from one (LoRA initialisation, shuffle) pair. What two pairs share is
signal, the rest is theirs alone: with mean cosine c between pairs, the mean of K of them has cosine
sqrt(K c / (1 + (K - 1) c)) to the mean of all. Measured at the untouched starting rows, on the
gradient in the simplex's logits, for several recipes, and with only one of the two changed. Each
measurement is one JSON file, so that a run goes on.
FOLDER holds ARC-Easy's train.jsonl and validation.jsonl; test rows are not read.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import replace
from itertools import combinations

import torch
from stage import opened, parser

import nacd
from nacd.distillation.learn import Distiller, draw, make_starts
from nacd.distillation.outer import Segment
from nacd.meta import make_engine, meta_gradient
from nacd.terminal.progress import Progress

LATE = "4 epochs, 5e-4, last epoch"
PLAIN = nacd.Recipe(batch_size=8, epochs=1, learning_rate=2e-3)
RECIPES = {
    "1 epoch, 2e-3": PLAIN,
    "1 epoch, 1e-3": nacd.Recipe(batch_size=8, epochs=1, learning_rate=1e-3),
    "2 epochs, 1e-3": nacd.Recipe(batch_size=8, epochs=2, learning_rate=1e-3),
    "1 epoch, 2e-3, AdamW eps 1e-5": nacd.Recipe(
        batch_size=8, epochs=1, learning_rate=2e-3, eps=1e-5
    ),
    "1 epoch, SGD 0.5": nacd.Recipe(
        optimizer="sgd", batch_size=8, epochs=1, learning_rate=0.5, clip=1.0
    ),
    "same shuffle": PLAIN,
    "same initial values": PLAIN,
    "same initial values and batches": PLAIN,
    "1 epoch, 5e-4": nacd.Recipe(batch_size=8, epochs=1, learning_rate=5e-4),
    "4 epochs, 5e-4": nacd.Recipe(batch_size=8, epochs=4, learning_rate=5e-4),
    LATE: nacd.Recipe(batch_size=8, epochs=4, learning_rate=5e-4),
}


def varied(name: str, first: Segment, other: Segment) -> Segment:
    """The other pair's segment, or the first one with only what `name` does not hold changed."""
    if name == "same shuffle":
        return replace(first, start=other.start)
    if name == "same initial values":
        return replace(first, order=other.order)
    if name == "same initial values and batches":  # the batches in another sequence
        places = sorted(range(len(first.order)), key=lambda k: min(other.order[k]))
        return replace(first, order=[first.order[k] for k in places])
    return other


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/agreement")
    flags.add_argument("--pairs", type=int, default=4)
    flags.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    options = flags.parse_args()
    progress = Progress()
    config, prepared = opened(options, progress)
    seeds = make_starts(prepared, draw(prepared.train, config.size, 0), config.outer.learn)
    engine = make_engine("one-sided", config.outer.fd_eps)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{'recipe':<32}{'cosine':>8}{'lowest':>8}{'to mean':>9}{'norm':>8}{'seconds':>9}")
    for number, (name, recipe) in enumerate(RECIPES.items()):
        if name not in options.only:
            continue
        folder = options.out / str(number)  # students that late windows start from
        distiller = Distiller(config, prepared, seeds, recipe, engine, [], folder, progress)
        outer, gradients = distiller.outer, []
        vectors = outer.vectors().detach()
        began = time.perf_counter()
        for pair in range(options.pairs):
            file = options.out / f"{number}-{pair}.json"
            if file.is_file():
                gradients.append(torch.tensor(json.loads(file.read_text())))
                continue
            segment = varied(name, distiller.segments(0, 0), distiller.segments(pair, 0))
            if name == LATE:  # from a student of its own, through the last epoch alone
                segment = distiller.segment(0, pair)
            found = meta_gradient(
                segment.loop,
                segment.start,
                [seeds.pseudo.batch(rows) for rows in segment.order],
                torch.tensor(math.log(recipe.learning_rate), device=vectors.device),
                vectors,
                segment.objective,
                engine,
                trim=config.outer.trim,
            )
            pulled = outer.projection.pull(found.vectors, 0.0).flatten().cpu()
            file.write_text(json.dumps(pulled.tolist()))
            gradients.append(pulled)
        taken = (time.perf_counter() - began) / options.pairs
        cosines = [
            float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(gradients, 2)
        ]
        c = max(0.0, statistics.fmean(cosines))
        share = math.sqrt(10 * c / (1 + 9 * c))
        norm = statistics.fmean(float(g.norm()) for g in gradients)
        print(
            f"{name:<32}{statistics.fmean(cosines):8.3f}{min(cosines):8.3f}{share:9.2f}"
            f"{norm:8.2g}{taken:9.0f}",
            flush=True,
        )
    print(f"rows {len(seeds.rows)}, pairs {options.pairs}; `to mean`: what ten pairs' mean reaches")


if __name__ == "__main__":
    main()
