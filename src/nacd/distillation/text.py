"""From token ids back to text that gives the same ids again.

The exported rows are text, and every target model tokenises that text anew. A row is kept only if
encoding its text gives back the ids that were chosen; where it does not, changed tokens next to the
first difference are chosen anew, and at last put back to the starting row's, which always works
because its ids came from its own text.

A learned prefix begins as a copy of the prompt's first tokens, of which the starting row knows
nothing. As long as it still is that copy, nothing is learned in it, and the row is the untouched
starting row, as it is where the copy does not survive re-encoding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nacd.data.example import Encoded, Example
from nacd.data.rows import Rows
from nacd.data.template import Template
from nacd.errors import UserError


def choosable(tokenizer: Any, rows: int) -> Tensor:
    """Ids that a projection may choose, (rows,) bool: plain text that encodes to itself alone.

    Special and added tokens, ids beyond the tokenizer's, and pieces of characters are left out.
    """
    allowed = torch.zeros(rows, dtype=torch.bool)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = [i for i in range(min(rows, len(tokenizer))) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for i, text, again in zip(ids, texts, encoded, strict=True):
        allowed[i] = bool(text) and "\ufffd" not in text and list(again) == [i]
    return allowed


@dataclass(frozen=True)
class TextRow:
    """One distilled row, back in text."""

    example: Example
    """The starting row with its last user turn replaced."""
    encoded: Encoded
    """Exactly what encoding `example` gives."""
    changed: float
    """Share of the learnable tokens that are not the starting row's: all of a prefix, if there is
    one."""
    repaired: int
    """Learnable tokens that were chosen anew or put back so that the text encodes to them."""


class RoundTrip:
    """Turns the ids of one pseudo-row into text, repairing what does not survive re-encoding."""

    def __init__(self, template: Template, tokenizer: Any, start: Example, row: Encoded):
        self.template = template
        self.tokenizer = tokenizer
        self.start = start
        self.row = row
        self.untouched = template.as_exported(start)  # without a learned prefix
        text = self._text(self.untouched.ids[slice(*self.untouched.prompt)])
        content = start.prompt
        at = content.find(text) if text else -1
        self.head, self.tail = (
            (content, "") if at < 0 else (content[:at], content[at + len(text) :])
        )
        self.reversible = at >= 0 and self._first_lost(row.ids) is None

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def example(self, ids: Sequence[int]) -> Example:
        """The starting row with its learnable span decoded from `ids` (the whole row's)."""
        text = self.head + self._text(ids[slice(*self.row.prompt)]) + self.tail
        return self.template.replace_prompt(self.start, text)

    def encode(self, ids: Sequence[int]) -> Encoded:
        """What encoding that text gives."""
        return self.template.as_exported(self.example(ids))

    def _first_lost(self, ids: Sequence[int]) -> int | None:
        """First position whose id or label does not come back; None: all of them do."""
        try:
            again = self.encode(ids)
        except UserError:  # a text that the template cannot show
            return 0
        wanted = zip(ids, self.row.response, strict=True)
        found = zip(again.ids, again.response, strict=True)
        pairs = enumerate(itertools.zip_longest(wanted, found))
        return next((i for i, (a, b) in pairs if a != b), None)

    def settle(
        self,
        ids: Sequence[int],
        original: Sequence[int],
        alternatives: Callable[[int], Sequence[int]],
    ) -> tuple[list[int], int]:
        """Ids that survive the round trip, labels and all, as near to `ids` as the search finds.

        Args:
            ids: wanted ids of the whole row.
            original: ids of a text that is known to survive.
            alternatives: other ids for a position of the row, best first.

        Returns:
            The ids, and how many positions had to be chosen anew.
        """
        current, repaired, tried = list(ids), 0, {}
        while (first := self._first_lost(current)) is not None:
            changed = [i for i, (a, b) in enumerate(zip(current, original, strict=True)) if a != b]
            if not changed:
                return list(original), repaired
            worst = min(changed, key=lambda i, lost=first: (abs(i - lost), i))
            if worst not in tried:
                tried[worst] = [a for a in alternatives(worst) if a != current[worst]]
                repaired += 1
            if tried[worst]:
                current[worst] = tried[worst].pop(0)
            else:
                current[worst] = original[worst]
        return current, repaired


def to_text(
    pseudo: Rows,
    ids: Tensor,
    starts: Sequence[Example],
    trips: Sequence[RoundTrip],
    alternatives: Callable[[int], Sequence[int]],
) -> list[TextRow]:
    """Turn token ids (Q,) at the slots into text rows that encode to exactly those (repaired) ids.

    A row that does not come back from its own tokens, or whose prefix is still the copy that it
    started as, is the untouched starting row.

    Args:
        pseudo: the pseudo-data that learning starts from.
        ids: chosen token ids.
        starts: the starting rows.
        trips: each row's round trip.
        alternatives: other ids for a slot, best first.
    """
    wanted = pseudo.with_ids(ids)
    rows = []
    for row, original, slots, seed, trip in zip(
        wanted.rows, pseudo.rows, pseudo.slots, starts, trips, strict=True
    ):
        if not trip.reversible:
            rows.append(TextRow(seed, trip.untouched, 0.0, 0))
            continue

        def choices(position: int, slots: tuple[int, ...] = slots) -> Sequence[int]:
            return alternatives(slots[position])

        final, repaired = trip.settle(row.ids, original.ids, choices)
        learnable = [i for i, slot in enumerate(slots) if slot >= 0]
        differing = sum(final[i] != original.ids[i] for i in learnable)
        if not differing:
            rows.append(TextRow(seed, trip.untouched, 0.0, repaired))
            continue
        prefixed = len(original) > len(trip.untouched)
        changed = 1.0 if prefixed else differing / len(learnable)
        rows.append(TextRow(trip.example(final), trip.encode(final), changed, repaired))
    return rows


def slot_ids(pseudo: Rows, rows: Sequence[TextRow]) -> Tensor:
    """Token ids (Q,) at the slots of text rows; of a row without its prefix, those at the start."""
    pairs = zip(rows, pseudo.rows, strict=True)
    kept = [row.encoded if len(row.encoded) == len(own) else own for row, own in pairs]
    return replace(pseudo, rows=tuple(kept)).ids


def share_changed(pseudo: Rows, rows: Sequence[TextRow]) -> float:
    """Share of all learnable tokens that are not the starting rows'."""
    learnable = [sum(slot >= 0 for slot in slots) for slots in pseudo.slots]
    changed = sum(row.changed * n for row, n in zip(rows, learnable, strict=True))
    return changed / sum(learnable)
