"""A budget: rows, a share of the rows, or tokens, and the rows that it pays for.

Settings hold a text (`5%`); `parse_budget` reads it, where a command begins, into the value that
everything behind takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nacd.errors import UserError

if TYPE_CHECKING:
    from nacd.config.settings import Converted
    from nacd.data import Encoded

    BudgetText = Converted[str, str | int | float]
    BudgetTexts = Converted[tuple[str, ...], Sequence[str | int | float]]
else:
    BudgetText, BudgetTexts = str, tuple[str, ...]

FORM = "give rows (112), a percentage (5%) or tokens (20000t)"


@dataclass(frozen=True)
class Budget:
    """How much is kept."""

    kind: Literal["rows", "share", "tokens"]
    number: float
    """Rows, per cent of them, or tokens."""
    text: str
    """As it was given."""

    def __str__(self) -> str:
        """As it was given."""
        return self.text

    @property
    def tokens(self) -> int | None:
        """Most tokens; None: it is not one of tokens."""
        return int(self.number) if self.kind == "tokens" else None

    def count(self, of: int) -> int:
        """Rows that it pays for of so many, at least one; not of a budget of tokens.

        Raises:
            UserError: more than there are.
        """
        assert self.kind != "tokens"
        count = round(self.number / 100 * of) if self.kind == "share" else int(self.number)
        if count > of:
            raise UserError(
                f"--budget {self}: {count} rows asked for, but there are {of} training rows (after "
                "target, validation and test rows are set aside and long ones dropped); give a "
                "smaller budget, or name files with --target and --heldout."
            )
        return max(1, count)

    def rows(self, rows: Sequence[Encoded], order: Sequence[int]) -> list[int]:
        """The first rows of `order` that the budget pays for.

        Args:
            rows: all training rows.
            order: row indices, best first.

        Raises:
            UserError: more rows or tokens than there are.
        """
        if self.kind != "tokens":
            return [*order[: self.count(len(order))]]
        total, chosen = 0, []
        for i in order:
            if total + len(rows[i]) > self.number:
                break
            total += len(rows[i])
            chosen.append(i)
        if len(chosen) == len(order):
            raise UserError(
                f"--budget {self}: the {len(order)} training rows have {total} tokens in all; "
                "nothing is left to distil. Give a smaller budget."
            )
        if not chosen:
            raise UserError(
                f"--budget {self}: the first row drawn has {len(rows[order[0]])} tokens already; "
                "give a larger budget."
            )
        return chosen


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


def parse_budget(budget: str | int | float) -> Budget:
    """The value of a budget.

    Raises:
        UserError: not a budget, 0, or over 100 %.
    """
    text = budget_text(budget)
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
        raise UserError(f"--budget {text}: not a number; {FORM}.") from None
    whole = kind == "share" or (math.isfinite(value) and value == int(value) and "." not in number)
    if not (0 < value < math.inf and whole):  # 1.0: one row, or all of them?
        raise UserError(f"--budget {text}: must be a whole number above 0; {FORM}.")
    if kind == "share" and value > 100:
        raise UserError(f"--budget {text}: over 100 % of the rows; {FORM}.")
    return Budget(kind, value, text)


class HasBudget:
    """A configuration with one budget."""

    budget: Any

    @property
    def size(self) -> Budget:
        """The budget's value.

        Raises:
            UserError: it is none.
        """
        return parse_budget(self.budget)
