"""The card of real rows: what they are, and how they were chosen."""

from __future__ import annotations

from collections.abc import Sequence

from nacd.export.card import (
    Card,
    code,
    columns_section,
    front_matter,
    license_section,
    made_table,
    trainers_section,
)
from nacd.export.dataset import DatasetRow


def render_chosen_card(
    card: Card, method: str, rows: Sequence[DatasetRow], *, in_order: bool, measured: str = ""
) -> str:
    """The text of `README.md` for real rows.

    Args:
        card: what to say.
        method: who chose them.
        rows: the rows of the data set, at least one.
        in_order: whether their order is one to train in; else they stand best first.
        measured: what trainings on them have shown, as Markdown; empty: nothing was measured.
    """
    shown = measured or (
        "That they train a model better than as many drawn at random is not shown here: draw some "
        "and\ncompare (`nacd check`)."
    )
    order = "in the order of the draw" if in_order else "best first"
    columns = columns_section(
        chat=rows[0].chat,
        prompt="the row's prompt",
        completion="its response",
        changed="0: none",
    )
    return f"""{front_matter(card, rows, ["data-selection"])}

# {card.title}

**These are real rows, chosen by {method}**: {len(rows)} of the {card.data_rows} training rows of
{code(card.data)}, word for word, {order}. Nothing in them was learned, written or changed.

They are the source data's own, with its licence, its mistakes and its personal data.

{shown}

{license_section(card.license)}

{columns}

{trainers_section(rows)}

## How they were chosen

{made_table(card)}
"""
