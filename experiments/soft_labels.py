"""Do an expert's soft labels make a small set of rows worth more to students of the same tokenizer?

    python experiments/soft_labels.py --data FOLDER [--of runs/swaps] [--model smollm2]
        [--expert-epochs 2] [--rates 5e-4 1e-3] [--soft-rates 1e-3 2e-3 4e-3] [--weights 0.5 1]
        [--kinds hard response all] [--top 64] [--trainings 3] [--out runs/soft-labels]

An expert trains on every training row. Students then train on sets of rows with hard labels (the
rows' own tokens), with its soft labels at the tokens of responses, and with those at all tokens
(`nacd label`, `nacd train --soft-labels`, with and without --no-soft-prompts) at weight w;
`hard-all`, if asked for, is the rows' own tokens, prompts too. The rate and w of each kind are
taken on validation rows, after a training on a random draw that the table does not have. The table
is of test rows: random draws, and rows that runs of `nacd select` have chosen; the k-th training of
every row of it has the same initial values and, on the same rows, the same order.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from stage import Figures, opened, parser
from torch import Tensor
from whole_rows import DRAWS, chosen

import nacd
from nacd.data.rows import Rows
from nacd.data.soft_labels import SoftLabels
from nacd.distillation.learn import draw
from nacd.model.teacher import expectations
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
    flags.add_argument(
        "--kinds", nargs="+", choices=["hard", "hard-all", "response", "all"],
        default=["hard", "response", "all"],
    )  # fmt: skip
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

    full = Figures().add("expert", folder.once("expert", lambda: measure(expert)))
    name = f"all rows, {options.expert_epochs:g} epochs at {options.expert_rate:g}"
    progress.say(f"{name}: {full:.3f}")

    def theta(rows: list[int], seed: int, kind: str, rate: float, weight: float) -> Tensor:
        made = nacd.Recipe(epochs=options.epochs, learning_rate=rate, shuffle=True)
        found = [train.rows[i] for i in rows]
        if kind == "hard":
            return fit(model, found, made, seed=seed).theta
        model.write(expert)
        expected = expectations(model, found, options.top)
        soft = SoftLabels([r.ids for r in found], expected, prompts=kind != "response")
        return fit(model, found, made, seed=seed, soft=soft, weight=weight).theta

    def tried(kind: str, rate: float, weight: float) -> float:
        """Loss on validation rows after a training on a draw of its own."""
        rows = draw(train, config.size, DRAWS + 100)

        def look() -> dict[str, float]:
            found = theta(rows, TUNING_SEED, kind, rate, weight)
            return {"nll": mean_nll(model, found, prepared.development.rows)}

        nll = folder.once(f"tuning-{kind}-{rate:g}-{weight:g}", look)["nll"]
        progress.say(f"validation rows, {kind}, rate {rate:g}, weight {weight:g}: {nll:.3f}")
        return nll

    def tuned(kind: str) -> tuple[float, float]:
        hard = kind.startswith("hard")
        weights = [0.0] if hard else options.weights
        rates = options.rates if hard else options.soft_rates
        pairs = [(rate, weight) for rate in rates for weight in weights]
        return min(pairs, key=lambda pair: tried(kind, *pair))

    best = {kind: tuned(kind) for kind in options.kinds}
    sets = {}
    for run in options.of:
        sets |= {k: v for k, v in chosen(run, prepared).items() if ": " not in k}
    figures = Figures()
    for k in range(options.trainings):
        for name, rows in {"random": draw(train, config.size, DRAWS + k), **sets}.items():
            for kind, (rate, weight) in best.items():
                kept = folder.once(
                    f"{name}-{kind}-{rate:g}-{weight:g}-{k}",
                    lambda r=rows, k=k, t=kind, a=rate, w=weight: measure(theta(r, k, t, a, w)),
                )
                nll = figures.add(f"{name}, {kind}", kept)
                progress.say(f"{name}, {kind}, {k + 1}: {nll:.3f}")
    print(
        f"{options.model}, {len(figures.tokens)} test rows, {options.trainings} trainings; all "
        f"rows {full:.3f}"
    )
    for kind, (rate, weight) in best.items():
        print(
            f"{kind}: rate {rate:g}" + ("" if kind.startswith("hard") else f", weight {weight:g}")
        )
    for name in figures.sums:
        print(f"{name:<30}{figures.mean(name):7.3f}")
    print(f"{'':<52}   {'mean':>6}   trainings   test rows")
    for name in ("random", *sets):
        for one, other in itertools.combinations(best, 2):
            line = f"{name}: {other} minus {one}"
            print(f"{line:<52}{figures.minus(f'{name}, {other}', f'{name}, {one}')}")
    for name in sets:
        for kind in best:
            line = f"{kind}: {name} minus random"
            print(f"{line:<52}{figures.minus(f'{name}, {kind}', f'random, {kind}')}")


if __name__ == "__main__":
    main()
