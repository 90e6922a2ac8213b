"""A budget: rows, a share of the rows, or tokens, and the rows that it pays for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from nacd.errors import UserError

if TYPE_CHECKING:
    from nacd.data import Encoded


def parse_budget(text: str) -> tuple[Literal["rows", "share", "tokens"], float]:
    """A budget's kind and number.

    Raises:
        UserError: not a budget, 0, or over 100 %.
    """
    kind: Literal["rows", "share", "tokens"] = "rows"
    number = text.strip().lower()
    if number.endswith("%"):
        kind, number = "share", number[:-1]
    else:
        for ending in ("tokens", "tok", "t"):
            if number.endswith(ending):
                kind, number = "tokens", number[: -len(ending)]
                break
    form = "give rows (112), a percentage (5%) or tokens (20000t)"
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"--budget {text}: not a number; {form}.") from None
    if not 0 < value < math.inf or (kind != "share" and value != int(value)):
        raise UserError(f"--budget {text}: must be a whole number above 0; {form}.")
    if kind == "share" and value > 100:
        raise UserError(f"--budget {text}: over 100 % of the rows; {form}.")
    return kind, value


def budget_rows(text: str, rows: list[Encoded], order: list[int]) -> list[int]:
    """The first rows of `order` that the budget pays for.

    Args:
        text: the budget.
        rows: all training rows.
        order: row indices, best first.

    Raises:
        UserError: more rows or tokens than there are.
    """
    kind, value = parse_budget(text)
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
            "(after target, development and report rows are set aside and long ones dropped); give "
            "a smaller budget, or name files with --target and --heldout."
        )
    return order[: max(1, count)]
