"""Nearest rows of the embedding table, and the neighbour regulariser of NACD (arXiv 2504.09818).

    L_reg = mean over learned positions of dist(p_ij, nearest row of the embedding table)

with dist the squared Euclidean distance over the mean squared norm of the table's rows (so that
beta means the same for every model), or one minus the cosine. The search is exact, over the whole
vocabulary, in chunks: the largest temporary has `CHUNK` entries, whatever V and Q are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["euclidean", "cosine"]
CHUNK = 4_000_000
"""Entries of the distance block held at once: 16 MB in float32."""


def nearest(
    vectors: Tensor,
    table: Tensor,
    allowed: Tensor | None = None,
    metric: Metric = "euclidean",
    own: Tensor | None = None,
) -> Tensor:
    """Id of the nearest row of the table (V, d) for every vector (Q, d): (Q,).

    Args:
        vectors: (Q, d).
        table: (V, d).
        allowed: (V,), False for ids that must not be chosen.
        metric: of the distance.
        own: (Q,), the id that may be chosen at each place whatever `allowed` says (the starting
            row's, which may be a piece of a character), and is where no other is nearer.
    """
    found = candidates(vectors, table, 1, allowed, metric)[:, 0]
    if own is None:
        return found
    own = own.to(found.device)
    vectors = vectors.to(table.device)

    def distance(ids: Tensor) -> Tensor:
        rows = table[ids].to(vectors.dtype)
        if metric == "cosine":
            return -torch.nn.functional.cosine_similarity(vectors, rows, dim=1)
        return ((vectors - rows) ** 2).sum(1)

    return torch.where(distance(own) <= distance(found), own, found)


@torch.no_grad()
def candidates(
    vectors: Tensor,
    table: Tensor,
    count: int,
    allowed: Tensor | None = None,
    metric: Metric = "euclidean",
) -> Tensor:
    """Ids of the `count` nearest rows of the table (V, d), nearest first: (Q, count).

    Raises:
        ValueError: fewer rows may be chosen.
    """
    most = len(table) if allowed is None else int(allowed.sum())
    if count > most:
        raise ValueError(f"{count} nearest rows of {most}")
    block = max(1, min(len(table), CHUNK // (4 * table.shape[1])))
    part = max(1, CHUNK // (2 * block))
    found = []
    for queries in vectors.split(part):
        queries = queries.to(table.device)
        best = torch.full(
            (len(queries), count), torch.inf, device=table.device, dtype=queries.dtype
        )
        ids = torch.zeros((len(queries), count), dtype=torch.long, device=table.device)
        for start in range(0, len(table), block):
            rows = table[start : start + block].to(queries.dtype)
            square = (rows * rows).sum(1)
            if metric == "cosine":  # the query's own norm does not change the order
                distance = -(queries @ rows.T) / square.clamp_min(1e-30).sqrt()
            else:
                distance = square - 2 * (queries @ rows.T)
            if allowed is not None:
                distance[:, ~allowed[start : start + block].to(table.device)] = torch.inf
            numbers = torch.arange(start, start + len(rows), device=table.device)
            merged = torch.cat([best, distance], 1)
            merged_ids = torch.cat([ids, numbers.expand(len(queries), -1)], 1)
            best, where = merged.topk(count, dim=1, largest=False)
            ids = merged_ids.gather(1, where)
        found.append(ids)
    return torch.cat(found)


def regulariser(
    vectors: Tensor, rows: Tensor, metric: Metric, scale: float
) -> tuple[float, Tensor]:
    """L_reg of vectors (Q, d) whose nearest rows are `rows` (Q, d), and its gradient (Q, d).

    Args:
        vectors: learned embeddings.
        rows: the nearest row of each, constants.
        metric: squared Euclidean distance over `scale`, or one minus the cosine.
        scale: mean squared norm of the table's rows.
    """
    leaf = vectors.detach().requires_grad_()
    with torch.enable_grad():
        if metric == "cosine":
            value = (1 - torch.nn.functional.cosine_similarity(leaf, rows, dim=1)).mean()
        else:
            value = ((leaf - rows) ** 2).sum(1).mean() / scale
        (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), gradient
