"""What a count may be: above this a value is a slip, and is refused before memory is taken.

No limit stands in the way of a real run: it is some hundred times what anybody has use for.
"""

from __future__ import annotations

import math

from nacd.errors import UserError

MOST = 1_000_000
"""Of anything that is counted: rows, tokens, trainings, optimiser steps."""
SEEDS = 2**31
"""Seeds are below this; others are made of them."""
LABEL_RATE = 4.0
"""Learning rate that soft labels bear, in multiples of that for the rows' own tokens; measured in
docs/results.md."""


def check_label_rate(rate: float) -> None:
    """Refuse a multiple that is none.

    Raises:
        UserError: it is not above 0, or not finite.
    """
    if not 0 < rate < math.inf:
        raise UserError(f"--label-rate {rate:g}: must be above 0, and finite.")


def check_counts(*counts: tuple[str, float, float]) -> None:
    """Refuse values out of range.

    Args:
        counts: a flag, its value, and the least that it may be. Whole numbers have a most, too.

    Raises:
        UserError: the first such value; its flag is named.
    """
    for flag, value, least in counts:
        if not least <= value < math.inf:
            raise UserError(f"{flag} {value}: must be at least {least}.")
        if isinstance(value, int) and value > MOST:
            raise UserError(f"{flag} {value}: must be at most {MOST:,}.")


def check_seed(seed: int) -> None:
    """Refuse what the generators do not take.

    Raises:
        UserError: it is negative, or too large.
    """
    if not 0 <= seed < SEEDS:
        raise UserError(f"--seed {seed}: must be at least 0 and below {SEEDS:,}.")
