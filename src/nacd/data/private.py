"""Strings that do not belong in a data set to be given away: addresses, numbers, keys.

They are found by their form alone, so a number that is none may be shown and a key of an unknown
form may be missed. What is shown of a find is masked: a terminal's log is an artefact, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

E_MAIL, PHONE, KEY = "e-mail addresses", "phone-like numbers", "API-key-like strings"

_FORMS = {
    KEY: re.compile(
        r"""(?x)
        (?<![A-Za-z0-9])(?:
          sk-(?=[A-Za-z_-]{0,80}\d)[A-Za-z0-9_-]{20,}    # OpenAI, Anthropic
        | [spr]k_(?:live|test)_[A-Za-z0-9]{16,}          # Stripe
        | hf_[A-Za-z0-9]{30,}                            # Hugging Face
        | gh[opsur]_[A-Za-z0-9]{36,} | github_pat_\w{22,} | glpat-[A-Za-z0-9_-]{20,}
        | (?:AKIA|ASIA)[A-Z0-9]{16}                      # AWS
        | AIza[A-Za-z0-9_-]{35}                          # Google
        | xox[abeprs]-[A-Za-z0-9-]{10,}                  # Slack
        | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{50,}
        | eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}   # JSON web token
        | (?i:api[_-]?key|secret(?:[_-]\w{1,30})?|access[_-]?token|auth[_-]?token|password)
          ["']?[ ]{0,3}[:=][ ]{0,3}["']?(?=[^\s"']{0,40}\d)[A-Za-z0-9_/+-]{16,}
        ) | -----BEGIN\ (?:[A-Z]+\ )*PRIVATE\ KEY-----
        """
    ),
    E_MAIL: re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
    ),
    PHONE: re.compile(
        r"""(?x)
        (?<![\w.,/+-])(?:
          \+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}          # +49 30 1234567
        | \(?0\d{1,4}\)?(?:[ ./-]{1,2}\d{2,8}){1,4}      # 030 1234567
        | 0[1-9]\d{8,9}                                  # 07911123456
        | (?:1[ .-])?(?:\([2-9]\d{2}\)\ ?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}   # (555) 123-4567
        )(?![\w-]|[.,]\d)
        """
    ),
}
_DIGITS = range(9, 16)
"""Digits of a phone number: fewer are a date, more an identifier."""


def found(text: str) -> Iterator[tuple[str, str]]:
    """Every such string of a text: its kind, and its beginning.

    A string is of one kind: what is part of a key is no address or number.
    """
    taken: list[tuple[int, int]] = []
    for kind, form in _FORMS.items():
        for match in form.finditer(text):
            start, end = match.span()
            if any(start < b and a < end for a, b in taken):
                continue
            if kind == PHONE and sum(map(str.isdigit, match[0])) not in _DIGITS:
                continue
            taken.append((start, end))
            yield kind, masked(kind, match[0])


def masked(kind: str, string: str) -> str:
    """As much of a string as tells its owner which it is."""
    if kind == E_MAIL:
        name, _, host = string.rpartition("@")
        return f"{name[:1]}…@{host}"
    return f"{string[:6]}…"
