"""Rows that training and report data have in common: shared runs of 13 words.

    words(text)   lower case, punctuation stripped, cut at white space
    overlap       two rows that share a run of n words; a row shorter than n words is one run

The size is GPT-3's (arXiv 2005.14165, appendix C). A short row so compares whole: it overlaps with
an equal row, not with a longer one that holds it. Text without spaces between words compares in
runs of what stands between spaces.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from nacd.data.example import Example

WORDS = 13
"""Length of a run."""


class _Stripped(dict[int, int | None]):
    """A table for `str.translate` that leaves out punctuation (Unicode categories P*)."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_STRIPPED = _Stripped()


def words(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    return text.lower().translate(_STRIPPED).split()


def row_text(example: Example) -> str:
    """What of a row is compared: all its turns but the system's, which many rows share."""
    return "\n".join(m.content for m in example.messages if m.role != "system")


def overlapping(
    train_texts: Iterable[str], report_texts: Sequence[str], n: int = WORDS
) -> Iterator[tuple[int, list[int]]]:
    """Every training row that overlaps, in order, with the test rows that it overlaps.

    Args:
        train_texts: rows that are trained on; read once.
        report_texts: rows that are reported on.
        n: words of a run.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n = {n}: a run has at least one word")
    holders: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, text in enumerate(report_texts):
        for run in runs(text, n):
            holders[run].add(number)
    for number, text in enumerate(train_texts):
        found: set[int] = set()
        for run in runs(text, n):
            found |= holders.get(run, set())
        if found:
            yield number, sorted(found)


def ngram_overlap(
    train_texts: Sequence[str], report_texts: Sequence[str], n: int = WORDS
) -> list[tuple[int, int]]:
    """Pairs (training row, report row) that share a run of n words, in order.

    Args:
        train_texts: rows that are trained on.
        report_texts: rows that are reported on.
        n: words of a run; a row shorter than that compares whole.

    Raises:
        ValueError: n is below 1.
    """
    return [
        (number, other)
        for number, others in overlapping(train_texts, report_texts, n)
        for other in others
    ]


def runs(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n words of a text; a text of fewer is one run, one without words none."""
    found = words(text)
    if not found:
        return
    for start in range(max(1, len(found) - n + 1)):
        yield tuple(found[start : start + n])
