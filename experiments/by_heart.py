"""Is a gain that of the rows, or of the shuffles they were learned on?

    python experiments/by_heart.py RUN [--seeds 3]

RUN is the folder of a `nacd distill` that has taken outer steps. Trains on its seeds, soft prompts
and text from initial values and shuffles that learning has used (`--shuffles K` of the run: all of
them; else the first ones), and from some that it has not, and prints the NLL on target and
development rows. Report rows are not read.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import yaml

from nacd.config import DistillConfig, from_dict
from nacd.learn import Distiller, make_seeds
from nacd.meta import make_engine
from nacd.prepare import prepare
from nacd.progress import Progress
from nacd.student import CHECK_SEED, LEARNING_SEED, mean_nll, train_student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    file = options.run / "run.yaml"
    config = from_dict(DistillConfig, yaml.safe_load(file.read_text()), str(file))
    progress = Progress()
    prepared = prepare(config.model, config.data, progress.say)
    chosen = json.loads((options.run / "seeds.json").read_text())["rows"]
    seeds = make_seeds(prepared, chosen, config.outer.learn)
    recipe = config.recipe
    if (tuned := options.run / "tuning.json").is_file():
        recipe = replace(recipe, learning_rate=json.loads(tuned.read_text())["learning_rate"])
    engine = make_engine("one-sided", config.outer.fd_eps)  # not used: nothing is learned here
    folder = options.run / "distill"
    distiller = Distiller(config, prepared, seeds, recipe, engine, [], folder, progress)
    distiller.restore()
    outer = distiller.outer
    text = distiller.settled(distiller.text(outer.projection.tokens()))
    kinds = {
        "seeds": (seeds.pseudo, None),
        "soft": (seeds.pseudo, outer.vectors().detach()),
        "text": (text, None),
    }
    used = min(options.seeds, config.outer.shuffles or outer.done)
    pairs = {
        "used in learning": range(LEARNING_SEED, LEARNING_SEED + used),
        "not used": range(CHECK_SEED, CHECK_SEED + options.seeds),
    }
    print(f"after {outer.done} outer steps; NLL per token, mean of the trainings")
    print(f"{'':<8}{'initial values and shuffles':<30}{'target':>8}{'development':>13}")
    for kind, (data, vectors) in kinds.items():
        for name, numbers in pairs.items():
            found = []
            for seed in numbers:
                theta = train_student(prepared.model, recipe, data, seed, vectors=vectors)
                parts = (prepared.target.rows, prepared.development.rows)
                found.append([mean_nll(prepared.model, theta, rows) for rows in parts])
            target, development = (statistics.fmean(x) for x in zip(*found, strict=True))
            print(f"{kind:<8}{name:<30}{target:8.3f}{development:13.3f}", flush=True)


if __name__ == "__main__":
    main()
