"""Do an expert's soft labels make a small set of rows worth more to students of the same tokenizer?

    python experiments/soft_labels.py --data FOLDER [--of runs/swaps] [--model smollm2]
        [--expert-epochs 2] [--rates 5e-4 1e-3] [--weights 0.5 1] [--top 64] [--trainings 3]
        [--out runs/soft-labels]

An expert trains on every training row. For each response position of a set of rows it gives the
log-probabilities of its `--top` likeliest tokens; a student then trains on the cross entropy with
them, weighed by w, and with the label itself, by 1 - w (Hinton et al., arXiv 1503.02531; the
probability outside the top tokens is left out, and the rest scaled to sum to 1). Rate and w are
taken on validation rows, after a training on a random draw that the table does not have; so is the
rate of hard labels. The table is of test rows: random draws, and rows that runs of `nacd select`
have chosen, each with hard and with soft labels; the k-th training of every row of it has the same
initial values and, on the same rows, the same order.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stage import opened, parser
from torch import Tensor
from torch.nn import functional as F
from whole_rows import DRAWS, chosen

import nacd
from nacd.data.batches import Batch
from nacd.data.example import Encoded
from nacd.data.rows import Rows
from nacd.distillation.learn import draw
from nacd.model.lora import LoraModel
from nacd.statistics.intervals import difference_interval, question_bootstrap
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll
from nacd.training.student import EXPERT_SEED, TUNING_SEED, mean_nll, train_student

Soft = dict[tuple[int, ...], tuple[Tensor, Tensor]]
"""Of every row, by its token ids: its likeliest tokens (n, k) and their probabilities (n, k)."""


def logits(model: LoraModel, batch: Batch, vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits (n, V) and labels (n,) of all response tokens, row after row, at the held LoRA."""
    packed, told = model.lay_out(batch)
    predicts = torch.zeros_like(packed.response)
    predicts[:, :-1] = packed.response[:, 1:]
    model._keep = predicts
    try:
        found = model.hf(inputs_embeds=model.inputs(packed, vectors), use_cache=False, **told)
    finally:
        model._keep = None
    return found.logits, packed.ids[:, 1:][packed.response[:, 1:]]


def soft_labels(model: LoraModel, theta: Tensor, rows: list[Encoded], top: int) -> Soft:
    """What the model at theta says of every response token of the rows."""
    model.write(theta)
    found: Soft = {}
    with torch.no_grad():
        for row in rows:
            batch = Rows.of([row], model.tokenizer.pad_token_id).batch([0])
            likely = logits(model, batch)[0].log_softmax(-1).topk(top)
            found[row.ids] = likely.indices, likely.values.softmax(-1)
    return found


class SoftStudent:
    """While entered, the model's loss is the weighed one; a row without soft labels is an error."""

    def __init__(self, model: LoraModel, soft: Soft, weight: float):
        self.model, self.soft, self.weight = model, soft, weight

    def __enter__(self) -> None:
        self.model._token_nll = self.loss  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.model._token_nll

    def loss(self, batch: Batch, vectors: Tensor | None, overrides: Any = None) -> Tensor:
        """As `LoraModel._token_nll`, (n,)."""
        scores, labels = logits(self.model, batch, vectors)
        rows = [
            self.soft[tuple(ids[: int(n)].tolist())]
            for ids, n in zip(batch.ids, batch.attention.sum(1), strict=True)
        ]
        ids, shares = (torch.cat(parts) for parts in zip(*rows, strict=True))
        logs = scores.log_softmax(-1)
        soft = -(shares * logs.gather(1, ids)).sum(1)
        return self.weight * soft + (1 - self.weight) * F.nll_loss(logs, labels, reduction="none")


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/soft-labels")
    flags.add_argument("--of", type=Path, nargs="+", default=[])
    flags.add_argument("--expert-rate", type=float, default=5e-4)
    flags.add_argument("--expert-epochs", type=float, default=2.0)
    flags.add_argument("--epochs", type=float, default=4.0)
    flags.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3])
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
    file = options.out / "expert.pt"
    if not file.is_file():
        progress.say("training an expert on all rows ...")
        torch.save(train_student(model, recipe, Rows.of(train.rows, pad), EXPERT_SEED), file)
    expert = torch.load(file, weights_only=True)

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
        soft = soft_labels(model, expert, found, options.top)
        with SoftStudent(model, soft, weight):
            return train_student(model, made, Rows.of(found, pad), seed)

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
    pairs = [(rate, weight) for rate in options.rates for weight in options.weights]
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
