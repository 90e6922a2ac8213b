"""Does an objective predict the outcome? Rank correlations over random draws of real rows.

    python experiments/predict.py --data FOLDER [--draws 20] [--out FOLDER]

Every draw of rows is trained on once, from one expert's own initial values. Before anything is
learned, each objective ranks the draws: the target loss after training, the loss on so many other
training rows, and the matching loss to the expert at several steps. How well does each ranking
agree with the loss on validation rows (Spearman)? Each training is one JSON file, so that the same
command goes on. FOLDER holds ARC-Easy's train.jsonl and validation.jsonl; test rows are not read.
"""

from __future__ import annotations

from typing import Any

from scipy.stats import spearmanr
from stage import opened, parser

import nacd
from nacd.config.budget import parse_budget
from nacd.data.rows import Rows
from nacd.distillation.learn import draw
from nacd.experts import record_expert
from nacd.meta.objectives import matching
from nacd.selection.random import random_order
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.student import mean_nll, train_student

SEED = 0
"""LoRA's initial values, of the expert and of every student."""
DRAW = 500
"""Rows are drawn by seeds 500, 501, ..."""
GOALS = (8, 16, 32, 64)
"""Steps of the expert that students are held against, beside its last."""
JUDGES = (64, 256, 512)
"""Numbers of training rows, of those not drawn, whose loss is an objective, too."""
JUDGED = 499
"""Those are in the order of this seed."""


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/predict")
    flags.add_argument("--draws", type=int, default=20)
    options = flags.parse_args()
    progress = Progress()
    _, prepared = opened(options, progress)
    model, pad = prepared.model, prepared.model.tokenizer.pad_token_id
    recipe = nacd.Recipe(batch_size=8, epochs=1, learning_rate=2e-3)
    full = nacd.ExpertConfig().recipe(recipe)
    with progress.stage("expert", full.total_steps(len(prepared.train))) as tick:
        expert = record_expert(
            model,
            prepared.train.rows,
            [example.digest for example in prepared.train.examples],
            full,
            seed=SEED,
            every=8,
            folder=options.out / "expert",
            pad_id=pad,
            progress=lambda done, _, loss: tick(done, loss),
        )
    start = expert.snapshot(0, model.device).theta
    last = expert.steps[-1]
    goals = {s: expert.snapshot(s, model.device).theta for s in (*GOALS, last) if s in expert.steps}

    judges = random_order(len(prepared.train), JUDGED)

    def trained(number: int) -> dict[str, Any]:
        drawn = draw(prepared.train, parse_budget(options.rows), DRAW + number)
        theta = train_student(
            model, recipe, Rows.of([prepared.train.rows[i] for i in drawn], pad), SEED
        )
        others = [prepared.train.rows[i] for i in judges if i not in set(drawn)][: JUDGES[-1]]
        nll = response_nll(model, theta, others)
        return {
            "development": mean_nll(model, theta, prepared.development.rows),
            "target": mean_nll(model, theta, prepared.target.rows),
            **{
                f"train {count}": float(nll.nll[:count].sum() / nll.tokens[:count].sum())
                for count in JUDGES
                if count <= len(others)
            },
            **{f"matching {s}": float(matching(theta, start, goals[s])) for s in goals},
        }

    folder = RunFolder(options.out)
    with progress.stage("draws", options.draws) as tick:
        found = []
        for number in range(options.draws):
            found.append(folder.once(f"draws/{number}", lambda number=number: trained(number)))
            tick(number + 1, found[-1]["development"])
    outcome = [row["development"] for row in found]
    print(f"{'objective':<24}{'Spearman':>9}{'p':>9}{'lowest':>9}{'highest':>9}")
    for name in found[0]:
        if name != "development":
            values = [row[name] for row in found]
            result = spearmanr(values, outcome)
            ends = "".join(f"{x:9.3f}" for x in (min(values), max(values)))
            print(f"{name:<24}{result.statistic:9.3f}{result.pvalue:9.2g}{ends}")
    print(
        f"{len(found)} draws of {options.rows}; development {min(outcome):.3f} to "
        f"{max(outcome):.3f}; expert: {last} steps"
    )


if __name__ == "__main__":
    main()
