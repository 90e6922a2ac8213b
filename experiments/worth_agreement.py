"""Do rows keep their worth over orders, over the rows that judge, and over sets of rows?

    python experiments/worth_agreement.py --data FOLDER [--rows 112] [--sets 2] [--orders 2]
        [--judges 2] [--judging 256] [--swapped 14] [--out FOLDER]

A probe trains on a set of rows by the tuned recipe (four epochs at 5e-4, shuffled) in one order,
carries the loss on one sample of judging rows back through the last epoch, and gives the same 96
candidates the derivative of that loss in their weight, as `nacd select --method swaps` does. Probes
differ in the set, in the order or in the judging sample. A set of the same size with `swapped` of
its rows replaced by other random ones stands beside every random set: what a round of swaps does to
it. The table has the mean rank correlation of two probes by what differs between them, as it is and
with the rows' classes of response lengths taken out. Each probe is one JSON file, so that a run
goes on. FOLDER holds ARC-Easy's train.jsonl and validation.jsonl; neither validation nor test rows
are read.
"""

from __future__ import annotations

import statistics
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from stage import opened, parser
from worth import EPS, EVERY, LENGTHS, PROBE_EPS, last_epoch

from nacd.data import bucketed, collate
from nacd.meta import FirstOrder, unvisited
from nacd.meta.objectives import target_objective
from nacd.model.prepare import Prepared
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import LEARNING_SEED

CANDIDATES = 96


class Drawn:
    """The candidates, the samples of judging rows and the sets, all of them apart."""

    def __init__(self, count: int, size: int, sets: int, judges: int, judging: int, swapped: int):
        order = np.random.default_rng(79).permutation(count).tolist()
        self.candidates = [order.pop() for _ in range(CANDIDATES)]
        self.judges = [[order.pop() for _ in range(judging)] for _ in range(judges)]
        self.sets: dict[str, list[int]] = {}
        for number in range(sets):
            rows = [order.pop() for _ in range(size)]
            others = [order.pop() for _ in range(swapped)]
            self.sets[f"{number}"] = rows
            self.sets[f"{number} swapped"] = others + rows[swapped:]


def probe(prepared: Prepared, chosen: list[int], seed: int, drawn: Drawn) -> dict[str, Any]:
    """The candidates' worth by each sample of judging rows, after one training."""
    model, rows = prepared.model, prepared.train.rows
    pad = model.tokenizer.pad_token_id
    loop, at, late, log_rate = last_epoch(prepared, chosen, seed)
    steps = list(range(0, max(1, len(late) - 2), EVERY))
    places = np.arange(CANDIDATES) % len(steps)
    beside = {
        step: [collate([rows[drawn.candidates[j]] for j in np.flatnonzero(places == k)], pad)]
        for k, step in enumerate(steps)
    }
    worths, values = [], []
    for judges in drawn.judges:
        batched = bucketed([rows[i] for i in judges], 16, pad, model.device)
        objective, engine = target_objective(model, batched), FirstOrder(EPS, central=False)
        swept, found = unvisited(
            loop, at, late, log_rate, objective, engine, beside, eps=PROBE_EPS, trim=0.01
        )
        worth = np.zeros(CANDIDATES)
        for k, step in enumerate(steps):
            worth[places == k] = -found[step].cpu().double().numpy()
        worths.append(worth.tolist())
        values.append(swept.value)
    return {"worths": worths, "places": places.tolist(), "judged": values}


def standard(worth: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Standardised within each group: (n,)."""
    found = np.zeros(len(worth))
    for group in set(groups.tolist()):
        own = worth[groups == group]
        found[groups == group] = (own - own.mean()) / (own.std() + 1e-12)
    return found


def main() -> None:
    flags = parser(__doc__, rows="112", out="runs/worth-agreement")
    for name, value in (("sets", 2), ("orders", 2), ("judges", 2), ("judging", 256)):
        flags.add_argument(f"--{name}", type=int, default=value)
    flags.add_argument("--swapped", type=int, default=14)
    options = flags.parse_args()
    progress = Progress()
    config, prepared = opened(options, progress)
    size = int(options.rows)
    drawn = Drawn(
        len(prepared.train),
        size,
        options.sets,
        options.judges,
        options.judging,
        options.swapped,
    )
    folder = RunFolder(config.out)
    lengths = np.array([prepared.train.rows[i].response_tokens for i in drawn.candidates])
    classes = np.digitize(lengths, LENGTHS)
    probes: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray]] = {}
    work = [(name, k) for name in drawn.sets for k in range(options.orders)]
    with progress.stage("probes", len(work)) as tick:
        for done, (name, k) in enumerate(work, 1):
            found = folder.once(
                f"probes/{name.replace(' ', '-')}-{k}",
                lambda name=name, k=k: probe(prepared, drawn.sets[name], LEARNING_SEED + k, drawn),
                of=f"{drawn.sets[name]} {drawn.judges}",
            )
            for j, worth in enumerate(found["worths"]):
                plain = standard(np.array(worth), np.array(found["places"]))
                probes[name, k, j] = plain, standard(plain, classes)
            tick(done, statistics.fmean(found["judged"]))
    pairs: dict[str, list[tuple[float, float]]] = {}
    for a, b in combinations(probes, 2):
        differs = " + ".join(
            what
            for what, one, other in zip(
                (_sets(a[0], b[0]), "order", "judging rows"), a, b, strict=True
            )
            if one != other
        )
        plain, within = (float(spearmanr(probes[a][i], probes[b][i]).statistic) for i in (0, 1))
        pairs.setdefault(differs, []).append((plain, within))
    print(f"{'what differs':<44}{'pairs':>6}{'mean':>8}{'lowest':>8}{'within lengths':>16}")
    for differs, found in sorted(pairs.items(), key=lambda item: item[0].count("+")):
        plains, withins = zip(*found, strict=True)
        print(
            f"{differs:<44}{len(found):>6}{statistics.fmean(plains):>8.2f}{min(plains):>8.2f}"
            f"{statistics.fmean(withins):>16.2f}"
        )


def _sets(a: str, b: str) -> str:
    return "some of the set" if a.split()[0] == b.split()[0] else "the set"


if __name__ == "__main__":
    main()
