"""What is every row worth late in a tuned training, and do the worthiest rows train better?

    python experiments/worth.py --data FOLDER [--rows 112] [--probes 2] [--repeats 1] [--out FOLDER]

A probe trains on random rows by the tuned recipe (four epochs at 5e-4, shuffled), carries the loss
on 96 other training rows back through the last epoch, and gives every row outside the set the
derivative of that loss in its weight, as if it were visited with weight 0: two forward passes of
the row at theta +- eps v, at one of four steps; see `nacd.meta.unvisited`. A row's worth is the
mean of its standardised derivatives. Sets of the same size are then made of the rows by their
worth, with the response lengths of the training rows or as they come, and trained on by the same
recipe.
Losses are of validation rows; test rows are not read. Each probe and each training is one JSON
file, so that a run goes on. FOLDER holds ARC-Easy's train.jsonl and validation.jsonl.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from stage import opened, parser
from torch import Tensor

import nacd
from nacd.data import Batch, bucketed, collate, training_order
from nacd.data.rows import Rows
from nacd.meta import FirstOrder, unvisited
from nacd.meta.objectives import target_objective
from nacd.model.prepare import Prepared
from nacd.selection.random import random_order
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.inner import InnerLoop, Start
from nacd.training.student import CHECK_SEED, LEARNING_SEED, mean_nll, train_student
from nacd.training.update import initial_state

RECIPE = nacd.Recipe(batch_size=8, epochs=4, learning_rate=5e-4)
JUDGES = 96
EVERY = 3
"""Steps between two at which rows are probed; not at the last, where the rate is nearly 0."""
EPS = 2e-3
PROBE_EPS = 5e-3
LENGTHS = (2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 10.5, 13.5)
"""Borders of the classes of response tokens."""


def last_epoch(
    prepared: Prepared, chosen: Sequence[int], seed: int
) -> tuple[InnerLoop, Start, list[Batch], Tensor]:
    """A training on rows up to its last epoch: the loop, its state, the batches left, log rate."""
    model, rows, size = prepared.model, prepared.train.rows, len(chosen)
    pad, total = model.tokenizer.pad_token_id, RECIPE.total_steps(size)
    log_rate = torch.tensor(math.log(RECIPE.learning_rate), device=model.device)
    order = training_order(size, RECIPE.batch_size, total, seed)
    batches = [collate([rows[chosen[i]] for i in where], pad) for where in order]
    window = math.ceil(size / RECIPE.batch_size)
    loop, theta = InnerLoop(model, RECIPE, total), model.fresh_theta(seed)
    start = Start(theta, initial_state(RECIPE, theta))
    at, _ = loop.run(start, batches[:-window], log_rate, None)
    return loop, at, batches[-window:], log_rate


def probe(prepared: Prepared, size: int, number: int) -> dict[str, Any]:
    """The worth of every row outside one random set of `size` rows, after training on the set."""
    model, rows = prepared.model, prepared.train.rows
    pad = model.tokenizer.pad_token_id
    shuffled = np.random.default_rng((number, 73)).permutation(len(rows)).tolist()
    chosen, rest = shuffled[:size], shuffled[size:]
    judges, outside = rest[: min(JUDGES, len(rest) // 2)], rest[min(JUDGES, len(rest) // 2) :]
    objective = target_objective(model, bucketed([rows[i] for i in judges], 16, pad, model.device))
    loop, at, late, log_rate = last_epoch(prepared, chosen, LEARNING_SEED + number)
    steps = list(range(0, max(1, len(late) - 2), EVERY))
    places, worth = np.arange(len(outside)) % len(steps), np.zeros(len(outside))
    mine = [np.flatnonzero(places == place) for place in range(len(steps))]
    mine = [js[np.argsort([len(rows[outside[j]]) for j in js], kind="stable")] for js in mine]
    beside = {
        step: [
            collate([rows[outside[j]] for j in part], pad)
            for part in np.array_split(js, math.ceil(len(js) / 24))
        ]
        for step, js in zip(steps, mine, strict=True)
    }
    engine = FirstOrder(EPS, central=False)
    swept, found = unvisited(
        loop, at, late, log_rate, objective, engine, beside, eps=PROBE_EPS, trim=0.01
    )
    for step, js in zip(steps, mine, strict=True):
        values = -found[step].cpu().double().numpy()
        worth[js] = (values - values.mean()) / values.std()
    return {"rows": outside, "worth": worth.tolist(), "judged": swept.value}


def by_length(worth: np.ndarray, lengths: np.ndarray, size: int, share: float) -> list[int]:
    """Rows drawn from the `share` of every class of response lengths that is worth most.

    Args:
        worth: of every row, (n,).
        lengths: response tokens of every row, (n,).
        size: rows of the set; every class has its part of them.
        share: of a class, 0 to 1; never fewer rows than are taken.
    """
    classes = np.digitize(lengths, LENGTHS)
    counts = np.bincount(classes, minlength=len(LENGTHS) + 1)
    parts = counts * size / len(lengths)
    wanted = np.floor(parts).astype(int)
    wanted[np.argsort(wanted - parts)[: size - wanted.sum()]] += 1
    generator, found = np.random.default_rng(5), []
    for number, want in enumerate(wanted):
        where = np.flatnonzero(classes == number)
        best = where[np.argsort(-worth[where], kind="stable")]
        pool = best[: max(want, round(share * len(where)))]
        found += generator.permutation(pool)[:want].tolist()
    return found


def swapped(base: list[int], worth: np.ndarray, lengths: np.ndarray, count: int) -> list[int]:
    """`base` with `count` rows swapped for worthier ones as long, the largest gains first."""
    classes, taken, pairs = np.digitize(lengths, LENGTHS), set(base), []
    for old in sorted(base, key=lambda i: worth[i]):
        better = (i for i in np.argsort(-worth, kind="stable").tolist() if i not in taken)
        new = next((i for i in better if classes[i] == classes[old]), None)
        if new is not None:
            taken.add(new)
            pairs.append((worth[new] - worth[old], old, new))
    changes = {old: new for _, old, new in sorted(pairs, reverse=True)[:count]}
    return [changes.get(i, i) for i in base]


def sets(worth: np.ndarray, lengths: np.ndarray, size: int) -> dict[str, list[int]]:
    """Sets of `size` rows by name: random ones, and by the worth of their rows."""
    best = np.argsort(-worth, kind="stable").tolist()
    base = random_order(len(worth), 100)[:size]
    return {
        "random": base,
        "a tenth swapped": swapped(base, worth, lengths, round(size * 0.107)),
        "a quarter swapped": swapped(base, worth, lengths, size // 4),
        "worthiest quarter, by length": by_length(worth, lengths, size, 0.25),
        "worthiest, by length": by_length(worth, lengths, size, 0.0),
        "worthiest": best[:size],
        "least worth, by length": by_length(-worth, lengths, size, 0.0),
        "random, another": random_order(len(worth), 101)[:size],
    }


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/worth")
    flags.add_argument("--probes", type=int, default=2)
    flags.add_argument("--repeats", type=int, default=1)
    options = flags.parse_args()
    progress = Progress()
    _, prepared = opened(options, progress)
    folder, size, rows = RunFolder(options.out), int(options.rows), prepared.train.rows
    total, count, found = np.zeros(len(rows)), np.zeros(len(rows)), []
    with progress.stage("probes", options.probes) as tick:
        for number in range(options.probes):
            kept = folder.once(f"probe-{number}", lambda n=number: probe(prepared, size, n))
            found.append(dict(zip(kept["rows"], kept["worth"], strict=True)))
            total[kept["rows"]] += kept["worth"]
            count[kept["rows"]] += 1
            tick(number + 1, kept["judged"])
    for (i, one), (j, other) in combinations(enumerate(found), 2):
        both = sorted(one.keys() & other.keys())
        agree = spearmanr([one[k] for k in both], [other[k] for k in both])
        print(f"probes {i} and {j}: {len(both)} rows, Spearman {agree.statistic:.2f}")
    lengths = np.array([row.response_tokens for row in rows])
    named = sets(total / np.maximum(count, 1), lengths, size)
    losses: dict[str, list[float]] = {name: [] for name in named}
    for repeat in range(options.repeats):
        for name, chosen in named.items():

            def trained(chosen: list[int] = chosen, seed: int = CHECK_SEED + repeat) -> dict:
                data = Rows.of([rows[i] for i in chosen], prepared.model.tokenizer.pad_token_id)
                theta = train_student(prepared.model, RECIPE, data, seed)
                return {"nll": mean_nll(prepared.model, theta, prepared.development.rows)}

            kept = folder.once(f"{name.replace(' ', '-').replace(',', '')}-{repeat}", trained)
            losses[name].append(kept["nll"])
            progress.say(f"{name}: {kept['nll']:.3f}")
    print(f"{'rows':<30}{'NLL':>8}{'response tokens':>17}{'tokens':>8}")
    for name, chosen in named.items():
        tokens = sum(len(rows[i]) for i in chosen)
        print(
            f"{name:<30}{statistics.fmean(losses[name]):8.3f}"
            f"{lengths[chosen].mean():17.1f}{tokens:8d}"
        )


if __name__ == "__main__":
    main()
