"""Slots of pseudo-data: which positions are learned, and what stands there."""

from __future__ import annotations

import pytest
import torch

from nacd.data import Encoded
from nacd.data.pseudo import make_pseudo_data, prefix_length
from nacd.errors import UserError

ROWS = (
    Encoded((1, 10, 11, 12, 2, 30, 31), (False,) * 5 + (True, True), (1, 4)),
    Encoded((1, 13, 2, 32), (False, False, False, True), (1, 2)),
    Encoded((1, 2, 33), (False, False, True), (0, 0)),  # nothing to learn here
)


def test_prompt_positions_are_numbered_row_after_row() -> None:
    pseudo = make_pseudo_data(ROWS, "prompt", 0)
    assert pseudo.rows == ROWS
    assert pseudo.slots == ((-1, 0, 1, 2, -1, -1, -1), (-1, 3, -1, -1), (-1, -1, -1))
    assert pseudo.size == 4
    assert pseudo.ids.tolist() == [10, 11, 12, 13]
    assert pseudo.row_slices() == [slice(0, 3), slice(3, 4), slice(4, 4)]


def test_a_prefix_stands_before_the_prompt() -> None:
    pseudo = make_pseudo_data(ROWS, "prefix:2", 0)
    first, second, third = pseudo.rows
    assert first.ids == (1, 10, 11, 10, 11, 12, 2, 30, 31)
    assert first.response == (False,) * 7 + (True, True)
    assert first.prompt == (1, 6)
    assert second.ids == (1, 13, 13, 13, 2, 32)
    assert third == ROWS[2]
    assert pseudo.slots[0] == (-1, 0, 1, -1, -1, -1, -1, -1, -1)
    assert pseudo.slots[1] == (-1, 2, 3, -1, -1, -1)
    assert pseudo.ids.tolist() == [10, 11, 13, 13]


@pytest.mark.parametrize("positions", ["prompt", "prefix:3"])
def test_other_ids_go_to_the_slots_alone(positions: str) -> None:
    pseudo = make_pseudo_data(ROWS, positions, 0)
    ids = torch.arange(100, 100 + pseudo.size)
    changed = pseudo.with_ids(ids)
    assert torch.equal(changed.ids, ids)
    assert changed.slots == pseudo.slots
    for row, before, slots in zip(changed.rows, pseudo.rows, pseudo.slots, strict=True):
        assert row.response == before.response
        assert row.prompt == before.prompt
        for token, old, slot in zip(row.ids, before.ids, slots, strict=True):
            assert token == (100 + slot if slot >= 0 else old)
    assert changed.with_ids(pseudo.ids) == pseudo


def test_a_batch_points_into_the_table() -> None:
    batch = make_pseudo_data(ROWS, "prompt", 0).batch([1, 0])
    assert batch.ids.tolist() == [[1, 13, 2, 32, 0, 0, 0], [1, 10, 11, 12, 2, 30, 31]]
    assert batch.slots.tolist() == [[-1, 3, -1, -1, -1, -1, -1], [-1, 0, 1, 2, -1, -1, -1]]
    assert batch.response_tokens == 3


def test_every_row_is_visited_once_an_epoch() -> None:
    pseudo = make_pseudo_data(ROWS, "prompt", 0)
    batches = pseudo.batches(batch_size=2, steps=4, seed=0)
    assert len(batches) == 4
    for epoch in (batches[:2], batches[2:]):
        slots = torch.cat([batch.slots[batch.slots >= 0] for batch in epoch])
        assert sorted(slots.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["suffix:3", "prefix", "prefix:", "prefix:0", "prefix:-1", ""])
def test_unknown_positions_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--learn .*prefix:8"):
        make_pseudo_data(ROWS, text, 0)


def test_prefix_length() -> None:
    assert prefix_length("prompt") == 0
    assert prefix_length("prefix:12") == 12


def test_rows_without_a_learnable_token_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        make_pseudo_data(ROWS[2:], "prompt", 0)
