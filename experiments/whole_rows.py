"""Do chosen rows train better than random ones, shuffled, on this model and on another?

    python experiments/whole_rows.py --data FOLDER --of runs/swaps runs/best-of
        [--model smollm2] [--rates 5e-4] [--epochs 4] [--trainings 5] [--draws 10]
        [--out runs/whole-rows]

Trains on the rows that runs of `nacd select` have chosen, on the rows that a search by swaps began
with, and on random draws, another for each training. The k-th training of every set has the same
initial values. With several --rates, the one with the lowest loss on validation rows after a
training on a random draw is taken first. The table is of test rows, which neither choosing nor
tuning has read; intervals are over trainings (Welch's t) and over questions (bootstrap); every two
sets are compared, too. Each training is one JSON file, so that a run goes on.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from stage import Figures, opened, parser

import nacd
from nacd.data.rows import Rows
from nacd.distillation.learn import draw
from nacd.model.prepare import Prepared
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.student import TUNING_SEED, mean_nll, train_student

DRAWS = 10_000
"""Random draws have seeds 10000, 10001, ..., as in a comparison."""


def chosen(run: Path, prepared: Prepared) -> dict[str, list[int]]:
    """Sets of rows of a selection's run folder, by name: what it chose, and what it began with."""
    places = {e.digest: i for i, e in enumerate(prepared.train.examples)}
    sets: dict[str, list[int]] = {}
    files = {run.name: "chosen.json", f"{run.name}: starting rows": "selection/start.json"}
    for name, file in files.items():
        if (run / file).is_file():
            digests = json.loads((run / file).read_text(encoding="utf-8"))["digests"]
            sets[name] = [places[digest] for digest in digests if digest in places]
            if missing := len(digests) - len(sets[name]):
                print(f"{name}: {missing} rows are too long for this model's tokenizer, or absent")
    return sets


def trained(
    prepared: Prepared, recipe: nacd.Recipe, rows: list[int], seed: int, tuning: bool
) -> dict[str, Any]:
    """One training, and the loss on validation rows, or of every report row."""
    pad = prepared.model.tokenizer.pad_token_id
    data = Rows.of([prepared.train.rows[i] for i in rows], pad)
    theta = train_student(prepared.model, recipe, data, seed)
    if tuning:
        return {"nll": mean_nll(prepared.model, theta, prepared.development.rows)}
    found = response_nll(prepared.model, theta, prepared.report.rows)
    return {"nll": [float(x) for x in found.nll], "tokens": [int(n) for n in found.tokens]}


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/whole-rows")
    flags.add_argument("--of", type=Path, nargs="+", default=[])
    flags.add_argument("--rates", type=float, nargs="+", default=[5e-4])
    flags.add_argument("--epochs", type=float, default=4.0)
    flags.add_argument("--trainings", type=int, default=5)
    flags.add_argument("--draws", type=int, help="trainings on random draws, if more")
    options = flags.parse_args()
    progress = Progress()
    config, prepared = opened(options, progress)
    folder = RunFolder(options.out)
    recipe = nacd.Recipe(epochs=options.epochs, shuffle=True)
    sets: dict[str, list[int]] = {}
    for run in options.of:
        sets |= chosen(run, prepared)

    def random(k: int) -> list[int]:
        return draw(prepared.train, config.size, DRAWS + k)

    def tried(rate: float) -> float:
        made = replace(recipe, learning_rate=rate)
        return folder.once(
            f"tuning-{rate:g}", lambda: trained(prepared, made, random(100), TUNING_SEED, True)
        )["nll"]

    rates = options.rates
    rate = rates[0] if len(rates) == 1 else min(rates, key=tried)
    recipe = replace(recipe, learning_rate=rate)
    figures, names = Figures(), ["random", *sets]
    draws = max(options.trainings, options.draws or 0)
    for k in range(draws):
        for name in names if k < options.trainings else ["random"]:
            rows = random(k) if name == "random" else sets[name]
            file = f"{name.replace(': ', '-').replace(' ', '-')}-{rate:g}-{k}"
            kept = folder.once(file, lambda r=rows, k=k: trained(prepared, recipe, r, k, False))
            progress.say(f"{name}, training {k + 1}: {figures.add(name, kept):.3f}")
    print(
        f"{options.model}, rate {rate:g}, {options.epochs:g} epochs, {len(figures.tokens)} test "
        f"rows, {options.trainings} trainings, {draws} random draws"
    )
    print(f"{'rows':<26}{'NLL':>7}{'tokens':>8}    minus random (trainings, test rows)")
    for name in names:
        line = f"{name:<26}{figures.mean(name):7.3f}"
        if name != "random":
            size = sum(len(prepared.train.rows[i]) for i in sets[name])
            line += f"{size:8d}    {figures.minus(name, 'random')}"
        print(line)
    for name, other in itertools.combinations(sets, 2):
        print(f"{f'{name} minus {other}':<45}{figures.minus(name, other)}")


if __name__ == "__main__":
    main()
