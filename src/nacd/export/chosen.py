"""Chosen rows as a data set folder, with its card and the trainers' files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nacd.config import ModelConfig
from nacd.data import Example, Template
from nacd.export.card import Card
from nacd.export.chosen_card import render_chosen_card
from nacd.export.dataset import DatasetRow, shared_name, write_dataset
from nacd.export.trainers import write_trainers


def write_chosen(
    dataset: Path,
    examples: Sequence[Example],
    template: Template,
    card: Card,
    method: str,
    model: ModelConfig,
    *,
    in_order: bool,
    seed: int,
    measured: str = "",
) -> list[DatasetRow]:
    """Write real rows as a data set folder, with its card and the trainers' files.

    Args:
        dataset: the folder.
        examples: the rows.
        template: how they are written.
        card: what the card says; its recipe is that of the trainers' files.
        method: who chose the rows.
        model: what the trainers' files train.
        in_order: whether the rows' order is that of a draw, rather than best first.
        seed: of the trainers' shuffles.
        measured: what was measured of these rows, as Markdown; empty: nothing.

    Returns:
        The rows as they were written.
    """
    rows = []
    for example in examples:
        row = template.row(example)
        source = shared_name(example.source)
        rows.append(DatasetRow(row["prompt"], row["completion"], source, example.digest, 0))
    text = render_chosen_card(card, method, rows, in_order=in_order, measured=measured)
    write_dataset(dataset, rows, text)
    write_trainers(dataset, rows, card.recipe, model, max_tokens=card.max_tokens, seed=seed)
    return rows
