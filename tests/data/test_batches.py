"""Padding, and the orders that batches come in."""

from __future__ import annotations

import pytest
import torch

from nacd.data import Encoded, collate, epoch_order, length_buckets, training_order


def row(*ids: int) -> Encoded:
    return Encoded(ids, tuple(i == len(ids) - 1 for i in range(len(ids))), (0, 1))


def test_rows_are_padded_on_the_right():
    batch = collate([row(5, 6, 7), row(8)], pad_id=0, slots=[[-1, 3, 4], [5]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.response.tolist() == [[False, False, True], [True, False, False]]
    assert batch.slots.tolist() == [[-1, 3, 4], [5, -1, -1]]
    assert (batch.tokens, batch.response_tokens) == (4, 2)
    assert batch.ids.dtype == batch.attention.dtype == batch.slots.dtype == torch.int64
    assert batch.response.dtype == torch.bool
    assert collate([row(1, 2)], 0).slots.tolist() == [[-1, -1]]


def test_padding_is_told_by_length_not_by_its_id():
    batch = collate([row(0, 0), row(0)], pad_id=0)
    assert batch.attention.tolist() == [[1, 1], [1, 0]]


def test_to_moves_every_tensor():
    batch = collate([row(1, 2)], 0).to("meta")
    tensors = (batch.ids, batch.attention, batch.response, batch.slots)
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_slots_must_fit():
    with pytest.raises(ValueError, match="row 1 has 1 tokens but 2 slots"):
        collate([row(5, 6), row(8)], 0, slots=[[-1, -1], [-1, -1]])
    with pytest.raises(ValueError, match="at least one row"):
        collate([], 0)


LENGTHS = [3, 17, 9, 2, 9, 30, 1, 12, 5, 21] * 10 + [4]
ROWS = [row(*range(length)) for length in LENGTHS]


def padding(batches: list[list[int]]) -> int:
    return sum(
        len(batch) * max(LENGTHS[i] for i in batch) - sum(LENGTHS[i] for i in batch)
        for batch in batches
    )


@pytest.mark.parametrize("seed", [None, 3])
def test_buckets_hold_every_row_once(seed: int | None):
    batches = length_buckets(ROWS, 4, seed=seed)
    assert sorted(i for batch in batches for i in batch) == list(range(101))
    assert sorted(len(batch) for batch in batches) == [1] + [4] * 25
    assert padding(batches) < padding(epoch_order(101, 4, 3, 0)) / 2


def test_buckets_for_evaluation_are_sorted_and_for_training_seeded():
    lengths = [LENGTHS[i] for batch in length_buckets(ROWS, 4, seed=None) for i in batch]
    assert lengths == sorted(LENGTHS)
    assert length_buckets(ROWS, 4, seed=3) == length_buckets(ROWS, 4, seed=3)
    assert length_buckets(ROWS, 4, seed=3) != length_buckets(ROWS, 4, seed=4)


def test_epochs_are_permutations_that_seed_and_epoch_decide():
    batches = epoch_order(10, 4, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(10))
    assert epoch_order(10, 4, seed=1, epoch=0) == batches
    assert epoch_order(10, 4, seed=1, epoch=1) != batches
    assert epoch_order(10, 4, seed=2, epoch=0) != batches
    assert all(type(i) is int for batch in batches for i in batch)


def test_without_a_seed_the_rows_come_as_they_are():
    assert training_order(5, 2, 5, None) == [[0, 1], [2, 3], [4], [0, 1], [2, 3]]
    assert training_order(5, 2, 5, 1) != training_order(5, 2, 5, 2)
