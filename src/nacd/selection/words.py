"""The words of a row, for methods that look at text alone."""

from __future__ import annotations

import re

from nacd.data import Example

_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_SPACELESS}]|[^\\W{_SPACELESS}]+")


def words(example: Example) -> list[str]:
    """The row's words in lower case, in order: every turn's but the system's.

    A Chinese or Japanese character is a word; a row without any word is cut at its spaces.
    """
    text = "\n".join(m.content for m in example.messages if m.role != "system").lower()
    return _WORD.findall(text) or text.split()
