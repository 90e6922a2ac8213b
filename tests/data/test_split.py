"""The split follows the rows, not their order."""

from __future__ import annotations

import random

import pytest

from nacd.data import Example, Message, Splits, split_by_hash, split_heldout
from nacd.errors import UserError


def rows(*numbers: int) -> list[Example]:
    return [
        Example((Message("user", f"{n}?"), Message("assistant", f"{n}!")), f"mine.jsonl:{place}")
        for place, n in enumerate(numbers, start=1)
    ]


def parts(splits: Splits) -> dict[str, str]:
    """Which part each row is in, by its prompt."""
    return {row.prompt: name for name in splits.sizes for row in getattr(splits, name)}


def test_sizes_at_the_defaults():
    def sizes(n: int) -> list[int]:
        return list(split_by_hash(rows(*range(n))).sizes.values())

    assert sizes(8) == [4, 1, 1, 2]
    assert sizes(282) == [142, 56, 28, 56]
    assert sizes(2251) == [1587, 64, 200, 400]


def test_every_row_lands_once_and_in_the_order_of_the_file():
    examples = rows(*range(100))
    splits = split_by_hash(examples)
    assert sorted(parts(splits)) == sorted(row.prompt for row in examples)
    assert sum(splits.sizes.values()) == 100
    for name in splits.sizes:
        lines = [int(row.source.split(":")[1]) for row in getattr(splits, name)]
        assert lines == sorted(lines)


def test_order_does_not_matter_and_the_split_is_no_mere_order():
    numbers = list(range(100))
    before = parts(split_by_hash(rows(*numbers)))
    random.Random(0).shuffle(numbers)
    assert parts(split_by_hash(rows(*numbers))) == before
    assert {before[f"{n}?"] for n in range(30)} == {"train", "target", "development", "report"}


def test_a_row_more_moves_at_most_one_row_over_each_border():
    before = parts(split_by_hash(rows(*range(200))))
    after = parts(split_by_hash(rows(*range(201))))
    assert sum(before[prompt] != after[prompt] for prompt in before) <= 3


def test_copies_share_a_part():
    splits = split_by_hash(rows(*range(40), *range(40)))
    assert sum(splits.sizes.values()) == 80
    prompts = [{row.prompt for row in getattr(splits, name)} for name in splits.sizes]
    assert sum(len(part) for part in prompts) == 40
    with pytest.raises(UserError, match="4 distinct rows are too few"):
        split_by_hash(rows(*range(4), *range(4), *range(4)))
    # with files for the rest every row is a training row, and with --heldout alone one is not
    assert split_by_hash(rows(1), target=0, development=0, report=0).sizes["train"] == 1
    assert split_by_hash(rows(1, 2), development=0, report=0).sizes["train"] == 1
    with pytest.raises(UserError, match="1 target rows leave none of 1 distinct rows to train on"):
        split_by_hash(rows(1), development=0, report=0)


def test_exact_numbers_and_none():
    splits = split_by_hash(rows(*range(100)), target=0, development=7, report=11)
    assert splits.sizes == {"train": 82, "target": 0, "development": 7, "report": 11}


def test_too_much_asked():
    with pytest.raises(UserError, match=r"90 test, 10 validation and 20 target rows leave none"):
        split_by_hash(rows(*range(100)), development=10, report=90)


def test_heldout_is_cut_one_to_two():
    development, report = split_heldout(rows(*range(90)))
    assert (len(development), len(report)) == (30, 60)
    assert not {row.digest for row in development} & {row.digest for row in report}
    assert len(split_heldout(rows(*range(900)))[0]) == 200
    with pytest.raises(UserError, match="--heldout"):
        split_heldout(rows(1, 1))
