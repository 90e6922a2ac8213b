"""What weakens a figure, in the same words on every page and under every table.

Each is a few words, and a sentence or two that say why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nacd.config.model import PACKAGED

Caution = tuple[str, str]
FEW_TRAININGS = 5
"""Trainings a row below which an interval is called wide."""
FEW_TEST = 100
"""Test rows below which a reader is warned."""


def of_trainings(count: int) -> Iterator[Caution]:
    """Few trainings behind a row of the table.

    Args:
        count: the fewest behind a row that decides.
    """
    if count == 1:
        yield "One training a row.", "There is no interval: nothing can be said of chance."
    elif count == 2:
        yield (
            "Only two trainings a row.",
            "An interval of two figures tells little of chance; from three on, better or worse is "
            "said.",
        )
    elif count < FEW_TRAININGS:
        yield (
            f"Only {count} trainings a row.",
            "The intervals are wide. They cover LoRA's initial values (and shuffles), not the "
            "choice of starting rows.",
        )


def of_test_rows(count: int) -> Iterator[Caution]:
    """Few held-out rows to measure on."""
    if count < FEW_TEST:
        yield f"Only {count} test rows.", "Others could put the sets in another order."


def of_order(methods: Iterable[str], shuffle: bool) -> Iterator[Caution]:
    """Rows learned in one order that were never trained on in another.

    Args:
        methods: rows of the table.
        shuffle: whether the recipe shuffles.
    """
    known = set(methods)
    if "text" in known and not shuffle and "text-shuffled" not in known:
        yield (
            "In the order of the file alone.",
            "The distilled rows were never trained on shuffled: what they gain may be their "
            "order's.",
        )


def of_model(*models: str) -> Iterator[Caution]:
    """The packaged model's weights."""
    if not PACKAGED.keys().isdisjoint(models):
        yield (
            "The packaged SmolLM2 is a 4-bit copy.",
            "Its weights come from a GGUF file, dequantised: the figures are not those of the "
            "original weights.",
        )
