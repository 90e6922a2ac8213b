"""From token ids back to text that gives the same ids again.

The exported rows are text, and every target model tokenises that text anew. A row is kept only if
encoding its text gives back the ids that were chosen; where it does not, changed tokens next to the
first difference are chosen anew, and at last put back to the seed's, which always works because a
seed's ids came from its own text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nacd.data.example import Encoded, Example
from nacd.data.template import Template
from nacd.distillation.pseudo import PseudoData


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
    """The seed with its last user turn replaced."""
    encoded: Encoded
    """Exactly what encoding `example` gives."""
    changed: float
    """Share of the learnable tokens that differ from the seed's."""
    repaired: int
    """Learnable tokens that were chosen anew or put back so that the text encodes to them."""


class RoundTrip:
    """Turns the ids of one pseudo-row into text, repairing what does not survive re-encoding."""

    def __init__(self, template: Template, tokenizer: Any, seed: Example, row: Encoded):
        self.template = template
        self.tokenizer = tokenizer
        self.seed = seed
        self.row = row
        plain = template.encode(seed, turns="last")  # without a learned prefix
        text = self._text(plain.ids[slice(*plain.prompt)])
        content = seed.prompt
        start = content.find(text) if text else -1
        self.head, self.tail = (
            (content, "") if start < 0 else (content[:start], content[start + len(text) :])
        )
        self.reversible = start >= 0 and self.encode(row.ids).ids == row.ids

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def example(self, ids: Sequence[int]) -> Example:
        """The seed with its learnable span decoded from `ids` (the whole row's)."""
        text = self.head + self._text(ids[slice(*self.row.prompt)]) + self.tail
        return self.template.replace_prompt(self.seed, text)

    def encode(self, ids: Sequence[int]) -> Encoded:
        """What encoding that text gives."""
        return self.template.encode(self.example(ids), turns="last")

    def settle(
        self,
        ids: Sequence[int],
        original: Sequence[int],
        alternatives: Callable[[int], Sequence[int]],
    ) -> tuple[list[int], int]:
        """Ids that survive the round trip, as near to `ids` as the search finds.

        Args:
            ids: wanted ids of the whole row.
            original: ids of a text that is known to survive.
            alternatives: other ids for a position of the row, best first.

        Returns:
            The ids, and how many positions had to be chosen anew.
        """
        current, repaired, tried = list(ids), 0, {}
        while True:
            again = self.encode(current).ids
            if list(again) == current:
                return current, repaired
            pairs = zip(current, again, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(again))
            changed = [i for i, (a, b) in enumerate(zip(current, original, strict=True)) if a != b]
            if not changed:
                return list(original), repaired
            worst = min(changed, key=lambda i: (abs(i - first), i))
            if worst not in tried:
                tried[worst] = [a for a in alternatives(worst) if a != current[worst]]
                repaired += 1
            if tried[worst]:
                current[worst] = tried[worst].pop(0)
            else:
                current[worst] = original[worst]


def to_text(
    pseudo: PseudoData,
    ids: Tensor,
    seeds: Sequence[Example],
    trips: Sequence[RoundTrip],
    alternatives: Callable[[int], Sequence[int]],
) -> list[TextRow]:
    """Turn token ids (Q,) at the slots into text rows that encode to exactly those (repaired) ids.

    Args:
        pseudo: the pseudo-data, whose own ids are the seeds'.
        ids: chosen token ids.
        seeds: the seed examples.
        trips: each row's round trip.
        alternatives: other ids for a slot, best first.
    """
    wanted = pseudo.with_ids(ids)
    rows = []
    for row, original, slots, seed, trip in zip(
        wanted.rows, pseudo.rows, pseudo.slots, seeds, trips, strict=True
    ):
        if not trip.reversible:
            rows.append(TextRow(seed, trip.template.encode(seed, turns="last"), 0.0, 0))
            continue

        def choices(position: int, slots: tuple[int, ...] = slots) -> Sequence[int]:
            return alternatives(slots[position])

        final, repaired = trip.settle(row.ids, original.ids, choices)
        learnable = [i for i, slot in enumerate(slots) if slot >= 0]
        differing = sum(final[i] != original.ids[i] for i in learnable)
        encoded = replace(row, ids=tuple(final))
        changed = differing / max(1, len(learnable))
        rows.append(TextRow(trip.example(final), encoded, changed, repaired))
    return rows
