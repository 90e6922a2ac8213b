"""Distilled rows under another model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nacd.data import Example, Message
from nacd.errors import UserError


def surviving_boundaries(texts: Sequence[str], source: Any, target: Any) -> float | None:
    """Share of the source's token boundaries that are the target's boundaries too.

    What was learned was learned token by token; where a boundary is lost, the target reads other
    units. Boundaries are character positions strictly inside a text.

    Args:
        texts: the learned prompts.
        source: fast tokenizer of the model that they were learned on.
        target: fast tokenizer of the model that trains on them.

    Returns:
        The share over all texts; None where no text has a boundary.
    """
    kept = total = 0
    for text in texts:
        before = _boundaries(text, source)
        total += len(before)
        kept += len(before & _boundaries(text, target))
    return kept / total if total else None


def _boundaries(text: str, tokenizer: Any) -> set[int]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = {int(end) for _, end in encoded["offset_mapping"]}
    return ends - {0, len(text)}


def other_prompts(examples: Sequence[Example], seed: int) -> list[Example]:
    """Every response under another row's prompt: a seeded shuffle, moved on by one.

    Raises:
        UserError: one row, for which there is no other.
    """
    if len(examples) < 2:
        raise UserError("other-prompts: one row has no other's prompt to take; raise --budgets.")
    order = np.random.default_rng((seed, 37)).permutation(len(examples)).tolist()
    giver = dict(zip(order, order[1:] + order[:1], strict=True))
    mixed = []
    for i, example in enumerate(examples):
        *earlier, user, response = example.messages
        prompt = Message(user.role, examples[giver[i]].prompt)
        mixed.append(replace(example, messages=(*earlier, prompt, response)))
    return mixed
