"""Do an expert's soft labels make a small set of rows worth more to students of the same tokenizer?

    python experiments/soft_labels.py --data FOLDER [--of runs/swaps] [--model smollm2]
        [--expert-epochs 2] [--rates 5e-4 1e-3] [--soft-rates 1e-3 2e-3 4e-3] [--weights 0.5 1]
        [--top 64] [--trainings 3] [--out runs/soft-labels]

An expert trains on every training row. Students then train on sets of rows with its soft labels
(`nacd label`, `nacd train --soft-labels`) at weight w. Rate and w are taken on validation rows,
after a training on a random draw that the table does not have; so is the rate of hard labels. The
table is of test rows: random draws, and rows that runs of `nacd select` have chosen, each with hard
and with soft labels; the k-th training of every row of it has the same initial values and, on the
same rows, the same order.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from stage import opened, parser
from torch import Tensor
from whole_rows import DRAWS, chosen

import nacd
from nacd.data.rows import Rows
from nacd.data.soft_labels import SoftLabels
from nacd.distillation.learn import draw
from nacd.model.teacher import expectations
from nacd.statistics.intervals import difference_interval, question_bootstrap
from nacd.store.cache import Cache
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.finetune import fit
from nacd.training.student import EXPERT_SEED, TUNING_SEED, mean_nll, train_student


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/soft-labels")
    flags.add_argument("--of", type=Path, nargs="+", default=[])
    flags.add_argument("--expert", type=Path, help="another --out, whose expert is taken")
    flags.add_argument("--expert-rate", type=float, default=5e-4)
    flags.add_argument("--expert-epochs", type=float, default=2.0)
    flags.add_argument("--epochs", type=float, default=4.0)
    flags.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3])
    flags.add_argument("--soft-rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    flags.add_argument("--weights", type=float, nargs="+", default=[0.5, 1.0])
    flags.add_argument("--top", type=int, default=64)
    flags.add_argument("--trainings", type=int, default=3)
    options = flags.parse_args()
    progress = Progress()
    config, prepared = opened(options, progress)
    model, train = prepared.model, prepared.train
    folder = RunFolder(options.out)
    pad = model.tokenizer.pad_token_id

    recipe = nacd.Recipe(
        epochs=options.expert_epochs, learning_rate=options.expert_rate, shuffle=True
    )

    def teach() -> dict[str, Tensor]:
        progress.say("training an expert on all rows ...")
        return {"theta": train_student(model, recipe, Rows.of(train.rows, pad), EXPERT_SEED)}

    kept = Cache(options.expert or options.out).tensors(
        "expert", teach, of={"recipe": repr(recipe)}
    )
    expert = kept["theta"].to(model.device)

    def measure(theta: Tensor) -> dict[str, Any]:
        found = response_nll(model, theta, prepared.report.rows)
        return {"nll": [float(x) for x in found.nll], "tokens": [int(n) for n in found.tokens]}

    full = folder.once("expert", lambda: measure(expert))
    tokens = np.asarray(full["tokens"])
    name = f"all rows, {options.expert_epochs:g} epochs at {options.expert_rate:g}"
    progress.say(f"{name}: {np.sum(full['nll']) / tokens.sum():.3f}")

    def theta(rows: list[int], seed: int, rate: float, weight: float) -> Tensor:
        made = nacd.Recipe(epochs=options.epochs, learning_rate=rate, shuffle=True)
        found = [train.rows[i] for i in rows]
        model.write(expert)
        soft = SoftLabels([r.ids for r in found], expectations(model, found, options.top))
        return fit(model, found, made, seed=seed, soft=soft, weight=weight).theta

    def tried(rate: float, weight: float) -> float:
        """Loss on validation rows after a training on a draw of its own."""
        rows = draw(train, config.size, DRAWS + 100)

        def look() -> dict[str, float]:
            found = theta(rows, TUNING_SEED, rate, weight)
            return {"nll": mean_nll(model, found, prepared.development.rows)}

        nll = folder.once(f"tuning-{rate:g}-{weight:g}", look)["nll"]
        progress.say(f"validation rows, rate {rate:g}, weight of soft labels {weight:g}: {nll:.3f}")
        return nll

    hard = min(options.rates, key=lambda rate: tried(rate, 0.0))
    pairs = [(rate, weight) for rate in options.soft_rates for weight in options.weights]
    soft = min(pairs, key=lambda pair: tried(*pair))
    sets = {}
    for run in options.of:
        sets |= {k: v for k, v in chosen(run, prepared).items() if ": " not in k}
    figures: dict[str, list[np.ndarray]] = {}
    for k in range(options.trainings):
        for name, rows in {"random": draw(train, config.size, DRAWS + k), **sets}.items():
            for kind, (rate, weight) in {"hard": (hard, 0.0), "soft": soft}.items():
                kept = folder.once(
                    f"{name}-{kind}-{rate:g}-{weight:g}-{k}",
                    lambda r=rows, k=k, a=rate, w=weight: measure(theta(r, k, a, w)),
                )
                own = figures.setdefault(f"{name}, {kind}", [])
                own.append(np.asarray(kept["nll"]))
                progress.say(f"{name}, {kind}, {k + 1}: {own[-1].sum() / tokens.sum():.3f}")
    nll = {name: [x.sum() / tokens.sum() for x in found] for name, found in figures.items()}
    print(
        f"{options.model}, {len(tokens)} test rows, {options.trainings} trainings; hard labels at "
        f"{hard:g}, soft ones at {soft[0]:g} with weight {soft[1]:g}; all rows "
        f"{np.sum(full['nll']) / tokens.sum():.3f}"
    )
    print(f"{'rows':<30}{'NLL':>7}{'soft minus hard (trainings)':>30}{'questions':>18}")
    for name in figures:
        line = f"{name:<30}{np.mean(nll[name]):7.3f}"
        if name.endswith("soft"):
            other = name.removesuffix("soft") + "hard"
            half = difference_interval(nll[name], nll[other]) or math.nan
            gaps = np.mean(figures[name], axis=0) - np.mean(figures[other], axis=0)
            low, high = question_bootstrap(gaps, tokens)
            gap = np.mean(nll[name]) - np.mean(nll[other])
            line += f"{gap:+20.3f} ± {half:.3f}  {low:+9.3f} {high:+.3f}"
        print(line)


if __name__ == "__main__":
    main()
