"""BM25: rows that share rare words with the target rows (Robertson & Zaragoza 2009; `bm25s`).

A target row is a query, a training row a document, both with prompt and response. With tf the times
that word w stands in a row of |row| words, and n_w the number of training rows (of n) with w,

    score(row, query) = sum over the query's words of
        log(1 + (n - n_w + 0.5) / (n_w + 0.5)) * tf / (tf + k1 (1 - b + b |row| / mean |row|)),

k1 = 1.5, b = 0.75: Lucene's form. Target rows then take turns to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nacd.selection.method import Ranking, Task
from nacd.selection.rounds import round_robin
from nacd.selection.words import words

K1, B = 1.5, 0.75


def bm25_scores(rows: Sequence[Sequence[str]], queries: Sequence[Sequence[str]]) -> np.ndarray:
    """BM25 of every row for every query.

    Args:
        rows: the words of n rows.
        queries: the words of t queries; a word that stands there twice counts twice.

    Returns:
        (n, t) float64.
    """
    import bm25s

    vocabulary: dict[str, int] = {"": 0}
    for row in rows:
        for word in row:
            vocabulary.setdefault(word, len(vocabulary))
    index = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    index.index(([[vocabulary[w] for w in row] for row in rows], vocabulary), show_progress=False)
    scores = np.zeros((len(rows), len(queries)))
    for q, query in enumerate(queries):
        known = [vocabulary[word] for word in query if word in vocabulary]
        if known:
            scores[:, q] = index.get_scores_from_ids(known)
    return scores


def bm25(task: Task) -> Ranking:
    """Training rows by BM25 for the target rows; a row's score is its best over these."""
    rows = [words(example) for example in task.prepared.train.examples]
    queries = [words(example) for example in task.prepared.target.examples]
    scores = bm25_scores(rows, queries)
    return Ranking(round_robin(scores), scores.max(axis=1))
