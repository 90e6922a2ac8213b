"""BM25: rows that share rare words with the target rows (Robertson & Zaragoza 2009; `bm25s`).

A target row is a query, a training row a document, both with prompt and response. With tf the times
that word w stands in a row of |row| words, and n_w the number of training rows (of n) with w,

    score(row, query) = sum over the query's words of
        log(1 + (n - n_w + 0.5) / (n_w + 0.5)) * tf / (tf + k1 (1 - b + b |row| / mean |row|)),

k1 = 1.5, b = 0.75: Lucene's form. Target rows then take turns to choose.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from nacd.selection.method import Ranking, Task
from nacd.selection.rounds import round_robin
from nacd.selection.words import words

K1, B = 1.5, 0.75


def bm25_scores(rows: Iterable[Sequence[str]], queries: Sequence[Sequence[str]]) -> np.ndarray:
    """BM25 of every row for every query.

    Args:
        rows: the words of n rows; read once.
        queries: the words of t queries; a word that stands there twice counts twice.

    Returns:
        (n, t) float64; a query's scores lie side by side in memory.
    """
    import bm25s

    wanted = {word: number for number, word in enumerate(sorted({*chain(*queries)}), 1)}
    corpus = _Words(rows, wanted)
    index = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    index.index((corpus, {"": 0} | wanted), show_progress=False)
    scores = np.zeros((len(queries), len(corpus)))
    for q, query in enumerate(queries):
        known = [number for word in query if (number := wanted[word]) in corpus.seen]
        if known:
            scores[q] = index.get_scores_from_ids(known)
    return scores.T


class _Words(Sequence[list[int]]):
    """Rows of words' numbers; those of words that no query has are 0: they count by length alone.

    Args:
        rows: the words.
        numbers: of the words of all queries, from 1.
    """

    def __init__(self, rows: Iterable[Sequence[str]], numbers: Mapping[str, int]):
        self._numbers, self._starts = array("i"), array("q", [0])
        for row in rows:
            self._numbers.extend(numbers.get(word, 0) for word in row)
            self._starts.append(len(self._numbers))
        self.seen = {*np.unique(np.frombuffer(self._numbers, dtype=np.int32)).tolist()}

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: Any) -> list[int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._numbers[self._starts[row] : self._starts[row + 1]].tolist()


def bm25(task: Task) -> Ranking:
    """Training rows by BM25 for the target rows; a row's score is its best over these."""
    queries = [words(example) for example in task.prepared.target.examples]
    scores = bm25_scores(map(words, task.prepared.train.examples), queries)
    return Ranking(round_robin(scores), scores.max(axis=1))
