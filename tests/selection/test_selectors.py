"""Selectors and filters on plain arrays and rows, against brute force and hand-worked examples."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nacd.data import Encoded, Example, Message
from nacd.errors import UserError
from nacd.selection import copies, rounds
from nacd.selection.bm25 import bm25_scores
from nacd.selection.choice import take
from nacd.selection.copies import RECALL, bands, deduplicated
from nacd.selection.filters import stratified
from nacd.selection.kcenter import k_center
from nacd.selection.rds import cosine
from nacd.selection.rounds import round_robin, subtask_max
from nacd.selection.words import words


def example(prompt: str, response: str = "yes", system: str = "") -> Example:
    turns = (Message("user", prompt), Message("assistant", response))
    return Example((Message("system", system), *turns) if system else turns, "rows.jsonl:1")


# k-center


def farthest_first(points: np.ndarray, first: int, count: int) -> list[int]:
    """Greedy k-center in float64, all distances anew at every step."""
    chosen = [first]
    while len(chosen) < count:
        gap = [
            -1.0
            if i in chosen
            else min(math.dist(points[i].tolist(), points[j].tolist()) for j in chosen)
            for i in range(len(points))
        ]
        chosen.append(int(np.argmax(gap)))
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_k_center_takes_the_farthest_row(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(60, 7)).astype(np.float32)
    found = list(itertools.islice(k_center(torch.from_numpy(points), first=seed), 25))
    assert found == farthest_first(points.astype(np.float64), seed, 25)


def test_k_center_stays_within_twice_the_best_radius() -> None:
    points = np.random.default_rng(5).normal(size=(14, 2))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)

    def radius(centres: tuple[int, ...] | list[int]) -> float:
        return float(gaps[:, list(centres)].min(axis=1).max())

    best = min(radius(c) for c in itertools.combinations(range(14), 4))
    for first in range(14):
        assert radius([*itertools.islice(k_center(torch.from_numpy(points), first), 4)]) <= 2 * best


def test_k_center_gives_copies_once() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [1.0], [0.0]])
    assert list(k_center(points, 1))[:2] == [1, 2]
    assert sorted(k_center(points, 1)) == [0, 1, 2, 3, 4]


def test_k_center_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert len(list(itertools.islice(k_center(torch.randn(50, 3), 0), 4))) == 4
    assert len(calls) == 3


# Rounds


def test_target_rows_take_turns() -> None:
    similarity = np.array(
        [
            # target 0, 1, 2
            [0.9, 0.8, 0.1],
            [0.8, 0.9, 0.2],
            [0.7, 0.7, 0.9],
            [0.1, 0.6, 0.8],
            [0.2, 0.1, 0.1],
        ]
    )
    # 0 takes row 0; 1 takes row 1; 2 takes row 2; 0 wants 1, 2 and takes 4 (0.2); 1 is left row 3.
    assert list(round_robin(similarity)) == [0, 1, 2, 4, 3]
    # The second target row's favourite is gone: it takes its next.
    assert list(round_robin(np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]]))) == [0, 1, 2]
    assert list(round_robin(np.zeros((3, 2)))) == [0, 1, 2]


def test_taking_turns_is_the_same_however_few_rows_are_sorted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(2)
    similarity = draw.integers(0, 6, (90, 4)).astype(np.float64)  # many equals
    similarity[draw.integers(0, 90, 9), draw.integers(0, 4, 9)] = np.nan
    wanted = np.argsort(-similarity, axis=0, kind="stable").T.tolist()
    taken: list[int] = []
    for turn in range(90):
        taken.append(next(row for row in wanted[turn % 4] if row not in taken))
    for first in (1, 3, 1024):
        monkeypatch.setattr(rounds, "FIRST", first)
        assert list(round_robin(similarity)) == taken


def test_subtask_scores_are_means_then_the_largest() -> None:
    scores = np.array([[1.0, 3.0, 0.0], [0.0, 0.0, 5.0], [2.0, 2.0, 1.0]])
    assert subtask_max(scores, ["a", "a", "b"]).tolist() == [2.0, 5.0, 2.0]
    assert subtask_max(scores, ["a", "b", "a"]).tolist() == [3.0, 2.5, 2.0]
    assert subtask_max(scores, ["", "", ""]) == pytest.approx(scores.mean(1))
    with pytest.raises(ValueError, match="3 target rows but 2 names"):
        subtask_max(scores, ["a", "b"])
    with pytest.raises(ValueError, match="0 target rows"):
        subtask_max(scores[:, :0], [])


def test_cosines() -> None:
    a = np.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])
    assert cosine(a, np.array([[2.0, 0.0]]))[:, 0] == pytest.approx([0.6, 0.0, -1.0])


# BM25


def test_bm25_is_the_formula() -> None:
    draw = random.Random(0)
    rows = [[draw.choice("abcdefgh") for _ in range(draw.randint(1, 9))] for _ in range(12)]
    queries = [["a", "b", "a"], ["h", "unknown"], ["unknown"], []]
    mean = sum(map(len, rows)) / len(rows)
    expected = np.zeros((len(rows), len(queries)))
    for (i, row), (q, query) in itertools.product(enumerate(rows), enumerate(queries)):
        for word in query:
            holders = sum(word in other for other in rows)
            rarity = math.log(1 + (len(rows) - holders + 0.5) / (holders + 0.5))
            times = row.count(word)
            weight = times / (times + 1.5 * (1 - 0.75 + 0.75 * len(row) / mean))
            expected[i, q] += rarity * weight
    assert bm25_scores(rows, queries) == pytest.approx(expected, rel=1e-9)


def test_words_of_a_row() -> None:
    assert words(example("What's NEW?", "A plant_2.", system="Be kind.")) == [
        *("what", "s", "new"),
        *("a", "plant_2"),
    ]
    assert words(example("水は何", "H2O")) == ["水", "は", "何", "h2o"]
    assert words(example("+ -", "?")) == ["+", "-", "?"]


# Filters


def variants(seed: int) -> list[Example]:
    """Texts of 20 to 30 words, some with a few words changed."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(400)]
    rows: list[list[str]] = []
    for _ in range(60):
        if rows and draw.random() < 0.5:
            row = list(draw.choice(rows))
            for _ in range(draw.randint(0, 8)):
                row[draw.randrange(len(row))] = draw.choice(vocabulary)
        else:
            row = draw.sample(vocabulary, draw.randint(20, 30))
        rows.append(row)
    return [example(" ".join(row)) for row in rows]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_near_copies_are_left_out(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = variants(3)
    sets = [set(words(row)) for row in rows]
    order = random.Random(1).sample(range(len(rows)), len(rows))
    kept: list[int] = []
    for i in order:  # exact Jaccard with every row kept so far
        if all(len(sets[i] & sets[j]) / len(sets[i] | sets[j]) < threshold for j in kept):
            kept.append(i)
    assert 10 < len(kept) < len(rows)
    assert list(deduplicated(order, rows, threshold)) == kept
    monkeypatch.setattr(copies, "FRESH", 30)  # the sorted arrays, too
    assert list(deduplicated(order, rows, threshold)) == kept


def test_bands_that_two_rows_share_are_found_however_they_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copies, "FRESH", 12)
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 3, (80, 12)).astype(np.uint32)
    index = copies.Bands(4, 3)
    for number, own in enumerate(signatures):
        same = (signatures[:number] == own).reshape(number, 4, 3).all(axis=2).any(axis=1)
        assert index.find(index.keys(own)) == np.flatnonzero(same).tolist()
        index.add(index.keys(own), number)


def test_bands_find_what_they_promise() -> None:
    for threshold in (0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        b, r = bands(threshold)
        assert b * r <= 128
        assert b >= 2
        assert 1 - (1 - threshold**r) ** b >= RECALL


@pytest.mark.parametrize("sizes", [(50, 30, 20), (97, 1, 1, 1), (5, 5, 5), (100, *[1] * 30)])
def test_groups_stay_in_proportion(sizes: tuple[int, ...]) -> None:
    groups = [str(g) for g, size in enumerate(sizes) for _ in range(size)]
    order = random.Random(0).sample(range(len(groups)), len(groups))
    found = list(stratified(iter(order), groups))
    assert sorted(found) == list(range(len(groups)))
    counts: Counter[str] = Counter()
    for number, row in enumerate(found, 1):
        counts[groups[row]] += 1
        assert all(counts[str(g)] < size * number / len(groups) + 1 for g, size in enumerate(sizes))
    if len(sizes) == 3:  # a fifth of the rows holds a fifth of every group
        fifth = Counter(groups[row] for row in found[: len(groups) // 5])
        assert fifth == {str(g): size // 5 for g, size in enumerate(sizes)}
    for g in range(len(sizes)):  # within a group the order stays
        member = [row for row in found if groups[row] == str(g)]
        assert member == [row for row in order if groups[row] == str(g)]


def test_a_group_that_runs_out_leaves_its_place() -> None:
    groups = ["a", "a", "b", "b"]
    assert list(stratified([3, 1, 0], groups)) in ([1, 3, 0], [3, 1, 0])
    assert list(stratified([0, 1], groups)) == [0, 1]


# Budgets


def encoded(length: int) -> Encoded:
    return Encoded((1,) * length, (True,) * length, (0, 0))


def test_a_budget_reads_an_order_as_far_as_it_reaches() -> None:
    rows = [encoded(n) for n in (5, 1, 4, 2, 3)]
    order = [4, 0, 2, 1, 3]
    read: list[int] = []

    def lazy() -> Iterator[int]:
        read.clear()
        for row in order:
            read.append(row)
            yield row

    assert take("2", rows, lazy()) == [4, 0]
    assert read == [4, 0]
    assert take("40%", rows, lazy()) == [4, 0]
    assert take("100%", rows, lazy()) == order
    assert take("1%", rows, lazy()) == [4]
    assert take("8t", rows, lazy()) == [4, 0]
    assert take("11t", rows, lazy()) == [4, 0]
    assert read == [4, 0, 2]


@pytest.mark.parametrize(
    ("budget", "order", "message"),
    [
        ("6", range(5), "--budget 6: 6 rows asked for, but there are 5 training rows"),
        ("15t", range(5), "--budget 15t: the 5 training rows have 15 tokens in all"),
        ("4t", range(5), "--budget 4t: the first row drawn has 5 tokens already"),
        ("3", range(2), "--budget 3: only 2 of the 5 training rows are left"),
        ("80%", range(2), "--budget 80%: only 2 of the 5 training rows are left"),
        ("9t", range(2), "--budget 9t: only 2 of the 5 .* or a higher --dedup"),
        ("0t", range(5), "--budget 0t: must be a whole number above 0"),
    ],
)
def test_a_budget_that_cannot_be_paid(budget: str, order: range, message: str) -> None:
    rows = [encoded(n) for n in (5, 1, 4, 2, 3)]
    with pytest.raises(UserError, match=message):
        take(budget, rows, order)
