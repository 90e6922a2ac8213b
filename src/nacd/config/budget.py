"""A budget: rows, a share of the rows, or tokens, and the rows that it pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nacd.errors import UserError

if TYPE_CHECKING:
    from nacd.config.settings import Converted
    from nacd.data import Encoded

    Budget = Converted[str, str | int | float]
    Budgets = Converted[tuple[str, ...], Sequence[str | int | float]]
else:
    Budget, Budgets = str, tuple[str, ...]


def budget_text(budget: str | int | float) -> str:
    """A budget as settings keep it: the same text for what means the same.

    A number below 1 is a share of the rows, as in scikit-learn: 0.05 is `5%`.
    """
    text = str(budget).strip()
    try:
        percent = 100 * float(text)
    except ValueError:
        return text
    return f"{percent:.12g}%" if 0 < percent < 100 else text


def parse_budget(budget: str | int | float) -> tuple[Literal["rows", "share", "tokens"], float]:
    """A budget's kind and number.

    Raises:
        UserError: not a budget, 0, or over 100 %.
    """
    text = budget_text(budget)
    form = "give rows (112), a percentage (5%) or tokens (20000t)"
    kind: Literal["rows", "share", "tokens"] = "rows"
    number = text.lower()
    if number.endswith("%"):
        kind, number = "share", number[:-1]
    else:
        for ending in ("tokens", "tok", "t"):
            if number.endswith(ending):
                kind, number = "tokens", number[: -len(ending)]
                break
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"--budget {text}: not a number; {form}.") from None
    whole = kind == "share" or (math.isfinite(value) and value == int(value) and "." not in number)
    if not (0 < value < math.inf and whole):  # 1.0: one row, or all of them?
        raise UserError(f"--budget {text}: must be a whole number above 0; {form}.")
    if kind == "share" and value > 100:
        raise UserError(f"--budget {text}: over 100 % of the rows; {form}.")
    return kind, value


def budget_rows(
    budget: str | int | float, rows: Sequence[Encoded], order: Sequence[int]
) -> list[int]:
    """The first rows of `order` that the budget pays for.

    Args:
        budget: the budget.
        rows: all training rows.
        order: row indices, best first.

    Raises:
        UserError: more rows or tokens than there are.
    """
    text, (kind, value) = budget_text(budget), parse_budget(budget)
    if kind == "tokens":
        total, chosen = 0, []
        for i in order:
            if total + len(rows[i]) > value:
                break
            total += len(rows[i])
            chosen.append(i)
        if len(chosen) == len(order):
            raise UserError(
                f"--budget {text}: the {len(order)} training rows have {total} tokens in all; "
                "nothing is left to distil. Give a smaller budget."
            )
        if not chosen:
            raise UserError(
                f"--budget {text}: the first row drawn has {len(rows[order[0]])} tokens already; "
                "give a larger budget."
            )
        return chosen
    count = round(value / 100 * len(order)) if kind == "share" else int(value)
    if count > len(order):
        raise UserError(
            f"--budget {text}: {count} rows asked for, but there are {len(order)} training rows "
            "(after target, validation and test rows are set aside and long ones dropped); give "
            "a smaller budget, or name files with --target and --heldout."
        )
    return [*order[: max(1, count)]]
