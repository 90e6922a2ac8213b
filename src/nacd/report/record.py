"""What a distillation leaves for its report, beside what it needs itself.

    distill/rows.jsonl     a starting row's prompt and the distilled one, changed tokens marked,
                           and the distance
    distill/learned.json   the exported outer step, why learning ended early, the learning rate
    distill/overlap.json   rows that training, target and test rows have in common

A text with marks is a list of pieces `[text, changed]` that join to the text. The distance of a row
is the mean over its learned positions of the regulariser's own (`nacd.distillation.neighbours`):
of the soft prompt's vector to its nearest row of the embedding table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacd.data import Example
from nacd.data.overlap import WORDS, overlapping, row_text
from nacd.distillation.learn import Learned, Starts
from nacd.distillation.neighbours import Metric, nearest
from nacd.distillation.text import TextRow
from nacd.model.prepare import Prepared
from nacd.store.files import write_json, write_json_lines

Pieces = list[tuple[str, bool]]
SHOWN_PAIRS = 20
"""Overlapping pairs that are kept by name; the rest are counted."""


def write_records(
    folder: Path,
    prepared: Prepared,
    starts: Starts,
    learned: Learned,
    text: Sequence[TextRow],
    allowed: Tensor,
    metric: Metric,
) -> None:
    """Write what the report of a distillation shows.

    Args:
        folder: the run folder.
        prepared: model, training rows and test rows.
        starts: the starting rows.
        learned: what the outer loop left.
        text: the exported rows.
        allowed: (V,) bool, tokens that may be chosen.
        metric: of the neighbour distance.
    """
    own = starts.pseudo.ids
    distances = neighbour_distances(learned.soft, prepared.model.table, allowed, metric, own)
    rows = row_records(prepared.model.tokenizer, starts, text, distances)
    write_json_lines(folder / "distill" / "rows.jsonl", rows)
    write_json(folder / "distill" / "learned.json", learned_record(learned))
    exported = [row.example for row in text]
    looked_at = {
        "distilled": exported,
        "train": prepared.train.examples,
        "target": prepared.target.examples,
    }
    overlap = overlap_record(looked_at, prepared.report.examples)
    write_json(folder / "distill" / "overlap.json", overlap)


@torch.no_grad()
def neighbour_distances(
    vectors: Tensor, table: Tensor, allowed: Tensor, metric: Metric, own: Tensor | None = None
) -> Tensor:
    """Distance of every vector (Q, d) to the nearest allowed row of the table (V, d): (Q,).

    A starting row's own token, `own` (Q,), is allowed at its place.

    Squared Euclidean over the mean squared norm of the table's rows, or one minus the cosine.
    """
    vectors = vectors.to(table.device)
    rows = table[nearest(vectors, table, allowed, metric, own)].to(vectors.dtype)
    if metric == "cosine":
        return (1 - torch.nn.functional.cosine_similarity(vectors, rows, dim=1)).cpu()
    scale = (table.float() ** 2).sum(1).mean()
    return (((vectors - rows) ** 2).sum(1) / scale).cpu()


def row_records(
    tokenizer: Any, starts: Starts, text: Sequence[TextRow], distances: Tensor
) -> list[dict[str, Any]]:
    """One record a distilled row, beside its starting row.

    Args:
        tokenizer: of the source model.
        starts: the starting rows and their learnable slots.
        text: the exported rows, in the starting rows' order.
        distances: (Q,) of every learnable slot.
    """
    records = []
    slices = starts.pseudo.row_slices()
    for number, (example, row) in enumerate(zip(starts.examples, text, strict=True)):
        before, after = _marked(tokenizer, starts, number, row)
        own = distances[slices[number]]
        records.append(
            {
                "row": number + 1,
                "seed_row": example.source,
                "seed_digest": example.digest,
                "seed": before,
                "distilled": after,
                "response": row.example.response,
                "tokens": len(own),
                "tokens_changed": row.changed,
                "tokens_repaired": row.repaired,
                "neighbour_distance": float(own.mean()) if len(own) else None,
            }
        )
    return records


def _marked(tokenizer: Any, starts: Starts, number: int, row: TextRow) -> tuple[Pieces, Pieces]:
    """The starting row's prompt and the distilled one, tokens that differ marked in both.

    Tokens of a learned prefix have no counterpart in it: all of them are marked.
    """
    example, plain = starts.examples[number], starts.rows[number]
    pseudo, final = starts.pseudo.rows[number], row.encoded
    if len(final) != len(pseudo):  # a row that went back to its seed, without the prefix
        return [(example.prompt, False)], [(row.example.prompt, False)]
    added = len(pseudo) - len(plain)
    ids = final.ids[slice(*pseudo.prompt)]
    first = pseudo.ids[slice(*pseudo.prompt)]
    changed = [i < added or a != b for i, (a, b) in enumerate(zip(ids, first, strict=True))]
    own = plain.ids[slice(*plain.prompt)]
    return (
        around(example.prompt, marked_text(tokenizer, own, changed[added:])),
        around(row.example.prompt, marked_text(tokenizer, ids, changed)),
    )


def marked_text(tokenizer: Any, ids: Sequence[int], changed: Sequence[bool]) -> Pieces:
    """Decode token ids in pieces of equal marks that join to the text of all of them.

    The pieces are cut out of the whole text: a piece decoded alone would lose the space in front
    of it with some tokenizers. A character that a cut would part goes with the piece behind it,
    which is marked if any token of the character is.

    Args:
        tokenizer: decodes.
        ids: n token ids.
        changed: their marks, n.
    """

    def decode(stop: int) -> str:
        return tokenizer.decode(
            list(ids[:stop]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    whole = decode(len(ids))
    stops, marks, stop = [0], [], 0
    for mark, group in groupby(changed):
        stop += len(list(group))
        stops.append(stop)
        marks.append(mark)
    pieces: Pieces = []
    done, pending = 0, False
    for (_, stop), mark in zip(pairwise(stops), marks, strict=True):
        so_far = whole if stop == len(ids) else decode(stop)
        pairs = enumerate(zip(whole, so_far, strict=False))
        cut = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(so_far)))
        if cut > done:
            pieces.append((whole[done:cut], pending or mark))
            done, pending = cut, False
        if cut < len(so_far):  # what is left over is a piece of a character
            pending = pending or mark
    return pieces


def around(content: str, pieces: Pieces) -> Pieces:
    """Pieces of the learnable span with the rest of the content before and behind them.

    The span is all of the content unless a special token was written into it. Where it cannot be
    found, the content is one piece, marked if any of it is.
    """
    text = "".join(piece for piece, _ in pieces)
    start = content.find(text)
    if start < 0 or not text:
        return [(content, any(mark for _, mark in pieces))] if content else []
    head, tail = content[:start], content[start + len(text) :]
    joined = [(head, False), *pieces, (tail, False)]
    merged = [
        ("".join(piece for piece, _ in group), mark)
        for mark, group in ((m, list(g)) for m, g in groupby(joined, key=lambda pair: pair[1]))
    ]
    return [piece for piece in merged if piece[0]]


def learned_record(learned: Learned) -> dict[str, Any]:
    """What the outer loop left, apart from its tensors and metrics."""
    return {
        "exported_step": learned.best_step,
        "stopped": learned.stopped,
        "learning_rate": learned.learning_rate,
        "soft_step": learned.soft_step,
        "soft_learning_rate": learned.soft_learning_rate,
        "seconds": learned.seconds,
    }


def overlap_record(
    looked_at: Mapping[str, Sequence[Example]], report: Sequence[Example]
) -> dict[str, Any]:
    """Overlap with the test rows of rows that were trained on or looked at.

    Args:
        looked_at: `distilled`, `train` and `target` rows.
        report: the test rows.

    Returns:
        `words` (n), `report_rows`, and under each of these names `rows`, `overlapping` (rows of
        theirs), `report_overlapping`, `pairs` (number) and `shown` (the first of them, by the
        rows' sources).
    """
    texts = [row_text(example) for example in report]
    found: dict[str, Any] = {"words": WORDS, "report_rows": len(report)}
    for name, rows in looked_at.items():
        touched: set[int] = set()
        own = pairs = 0
        shown: list[tuple[str, str]] = []
        for number, others in overlapping(map(row_text, rows), texts):
            own += 1
            pairs += len(others)
            touched.update(others)
            if len(shown) < SHOWN_PAIRS:
                shown.append((rows[number].source, report[others[0]].source))
        found[name] = {
            "rows": len(rows),
            "overlapping": own,
            "report_overlapping": len(touched),
            "pairs": pairs,
            "shown": shown,
        }
    return found
