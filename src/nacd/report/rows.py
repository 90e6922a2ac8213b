"""The distilled rows of the page: every one beside its seed, as far as a page to mail has room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from nacd.store.folder import Run

ROOM = 1_400_000
"""Bytes of row text on a page; the whole page, without its charting script, stays under 2 MB."""
_FRAME = 700
"""Bytes of markup around a row."""
_MARK = 11
"""Bytes of markup around a marked piece."""


def all_rows(run: Run) -> list[dict[str, Any]]:
    """The distilled rows, in the data set's order, beside their starting rows where these are kept.

    A row has `number`, `source`, `seed` (its starting row) and `distilled` (pieces with marks;
    `seed` None where it is not kept, `distilled` None where it is the same), `response`, `changed`
    (a share), `count` and `tokens` (changed and learnable ones), `distance`, and `bytes`, its size
    on the page.
    """
    if run.rows:
        return [_beside_seed(row) for row in run.rows]
    return [_alone(number, row) for number, row in enumerate(run.dataset, 1)]


def shown_rows(run: Run) -> tuple[list[dict[str, Any]], int]:
    """The rows to show, the most changed first, and how many are left out for want of room."""
    rows = all_rows(run)
    return within_room(sorted(rows, key=lambda row: (-row["changed"], row["number"])))


def within_room(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """As many of the first rows as a page has room for, and how many are left out."""
    kept, used = [], 0
    for row in rows:
        used += row["bytes"]
        if used > ROOM:
            break
        kept.append(row)
    return kept, len(rows) - len(kept)


def written(row: Mapping[str, Any]) -> dict[str, Any]:
    """A real row of an exported data set: `source`, `prompt`, `response`, and `bytes` on a page."""
    prompt, response = _turns(row["prompt"]), _plain(row["completion"])
    return {
        "source": Path(row["seed_row"]).name,
        "prompt": prompt,
        "response": response,
        "bytes": _FRAME + _bytes(row["seed_row"]) + _bytes(prompt) + _bytes(response),
    }


def _beside_seed(row: dict[str, Any]) -> dict[str, Any]:
    same = row["seed"] == row["distilled"]
    pieces = [*row["seed"], *([] if same else row["distilled"])]
    return {
        "number": row["row"],
        "source": Path(row["seed_row"]).name,
        "seed": row["seed"],
        "distilled": None if same else row["distilled"],
        "response": row["response"],
        "changed": row["tokens_changed"],
        "count": round(row["tokens_changed"] * row["tokens"]),
        "tokens": row["tokens"],
        "distance": row["neighbour_distance"],
        "bytes": _FRAME
        + _bytes(row["seed_row"])
        + _bytes(row["response"])
        + sum(_MARK + _bytes(text) for text, _ in pieces),
    }


def _alone(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a folder that does not keep the starting rows' texts."""
    prompt, response = _plain(row["prompt"]), _plain(row["completion"])
    return {
        "number": number,
        "source": Path(row["seed_row"]).name,
        "seed": None,
        "distilled": [(prompt, False)],
        "response": response,
        "changed": row["tokens_changed"],
        "count": None,
        "tokens": None,
        "distance": None,
        "bytes": _FRAME + _bytes(row["seed_row"]) + _bytes(prompt) + _bytes(response),
    }


def _plain(text: str | list[dict[str, str]]) -> str:
    """An exported prompt or completion as text: a template's, or the last message's."""
    return text.strip() if isinstance(text, str) else text[-1]["content"]


def _turns(text: str | list[dict[str, str]]) -> str:
    """An exported prompt as text; of several turns, each with its role."""
    if isinstance(text, str) or len(text) == 1:
        return _plain(text)
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _bytes(text: str) -> int:
    return len(str(escape(text)).encode("utf-8", "replace"))
