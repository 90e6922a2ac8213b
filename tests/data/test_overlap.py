"""Overlap of rows, against hand-counted cases and a naive search in strings."""

from __future__ import annotations

import random

import pytest

from nacd.data import Example, Message
from nacd.data.overlap import ngram_overlap, overlapping, row_text, words

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("It's “Done”, he said — at 3.5 %!") == ["its", "done", "he", "said", "at", "35"]
    assert words(" ... ") == []


def test_thirteen_shared_words_overlap_and_twelve_do_not() -> None:
    train = [f"before {THIRTEEN} after", THIRTEEN.removeprefix("one ") + " after"]
    report = [f"Elsewhere: {THIRTEEN.upper()}!", "nothing of that"]
    assert ngram_overlap(train, report) == [(0, 0)]


def test_short_rows_compare_whole() -> None:
    report = ["What is ice?", "What is ice made of?", ""]
    assert ngram_overlap(["what is ICE", "is ice", "", "?!"], report) == [(0, 0)]
    # Twelve words are one run, which is no run of the thirteen around it.
    assert ngram_overlap([THIRTEEN.removesuffix(" thirteen")], [THIRTEEN]) == []


def test_a_pair_is_named_once_and_pairs_come_in_order() -> None:
    twice = f"{THIRTEEN} {THIRTEEN} fourteen"
    assert ngram_overlap([twice, "x", twice], [twice, THIRTEEN]) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert list(overlapping(["x", twice], [twice, THIRTEEN])) == [(1, [0, 1])]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_agrees_with_a_search_in_strings(n: int) -> None:
    draw = random.Random(n)

    def texts(count: int) -> list[str]:
        return [" ".join(draw.choices("abc", k=draw.randrange(1, 6))) for _ in range(count)]

    train, report = texts(40), texts(30)
    expected = []
    for i, a in enumerate(train):
        for j, b in enumerate(report):
            x, y = a.split(), b.split()
            if len(x) < n or len(y) < n:
                same = x == y
            else:  # every word is one letter, so runs are substrings
                same = any(" ".join(x[k : k + n]) in b for k in range(len(x) - n + 1))
            if same:
                expected.append((i, j))
    assert ngram_overlap(train, report, n) == expected


def test_no_run_has_no_words() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        ngram_overlap(["a"], ["a"], 0)


def test_a_shared_system_prompt_is_no_overlap() -> None:
    def row(question: str) -> Example:
        turns = (("system", THIRTEEN), ("user", question), ("assistant", "yes"))
        return Example(tuple(Message(*turn) for turn in turns), "rows.jsonl:1")

    assert row_text(row("Is it?")) == "Is it?\nyes"
