"""All rows of a part to token ids; what cannot be trained on is left out, and counted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nacd.data.example import Example
from nacd.data.stored import EncodedRows, Examples
from nacd.data.template import Template
from nacd.errors import UserError


@dataclass(frozen=True)
class Dropped:
    """What encoding left out of the rows, or put into them, counted."""

    rows: int
    """Rows that came in."""
    too_long: int
    """Of these, longer than `max_tokens`."""
    unlabelled: int
    """Of these, without a label token."""
    max_tokens: int
    longest: int
    """Tokens of the longest row that came in."""
    shortened: int = 0
    """Rows kept that the chat template writes without the beginning of earlier assistant turns."""
    leads: Mapping[str, int] = field(default_factory=dict)
    """Words of the chat template's own that labels begin with, and how many kept rows have them."""

    @property
    def count(self) -> int:
        """Rows left out."""
        return self.too_long + self.unlabelled

    @property
    def message(self) -> str:
        """One line for the user; empty when every row was encoded whole, and nothing else."""
        parts, lines = [], []
        if self.too_long:
            parts.append(
                f"{self.too_long} longer than --max-tokens {self.max_tokens} "
                f"(the longest has {self.longest})"
            )
        if self.unlabelled:
            parts.append(f"{self.unlabelled} whose response leaves no token to learn")
        if parts:
            lines.append(f"dropped {self.count} of {self.rows} rows: {', '.join(parts)}")
        kept = self.rows - self.count
        if self.shortened:
            lines.append(
                f"in {self.shortened} of {kept} rows the chat template leaves out the beginning of "
                "earlier assistant turns (their reasoning), which are no labels there"
            )
        lines += [
            f"in {count} of {kept} rows the chat template writes {lead!r} before the response, and "
            "it is learned with it, as in TRL"
            for lead, count in self.leads.items()
        ]
        return "; ".join(lines)


def encode_all(
    template: Template,
    examples: Sequence[Example],
    max_tokens: int,
    flag: str = "--data",
    turns: Literal["all", "last"] = "all",
) -> tuple[EncodedRows, Examples, Dropped]:
    """Encode rows; one too long, or without a label token, is dropped and counted, never cut.

    Args:
        template: how they are written.
        examples: the rows.
        max_tokens: the longest row that is kept.
        flag: the flag that named the data, for error messages.
        turns: as for `Template.encode`.

    Returns:
        The encoded rows, their examples in the same order, and the count of those dropped.

    Raises:
        UserError: no row is left, or one cannot be encoded.
    """
    encoded, kept = EncodedRows(), array("q")
    too_long = unlabelled = longest = shortened = 0
    leads: Counter[str] = Counter()
    for number, row in enumerate(template.encoded(examples, turns)):
        longest = max(longest, len(row))
        if len(row) > max_tokens:
            too_long += 1
        elif not row.response_tokens:
            unlabelled += 1
        else:
            encoded.append(row)
            kept.append(number)
            shortened += row.shortened > 0
            if row.lead:
                leads[row.lead] += 1
    dropped = Dropped(len(examples), too_long, unlabelled, max_tokens, longest, shortened, leads)
    if not encoded:
        raise UserError(
            f"no row is left ({dropped.message or 'none came in'}). Raise --max-tokens, or give "
            f"{flag} shorter rows."
        )
    return encoded, Examples.of(examples).take(kept), dropped
