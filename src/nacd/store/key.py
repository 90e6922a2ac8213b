"""What a kept thing is of: a key says it, and of two keys it is told in what they differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nacd.errors import UserError


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value there, value now) wherever two configurations differ, by key."""
    old, new = flatten(there), flatten(now)
    keys = sorted(old.keys() | new.keys())
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def key_sha256(of: Mapping[str, Any]) -> str:
    """What stands for a key in the header of a file."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def unlike(
    there: Mapping[str, Any], now: Mapping[str, Any], lately: Collection[str] = ()
) -> list[str]:
    """In what a file is of something else than is asked for: sentences, none where it is not.

    Args:
        there: what the file says; what it says beyond the names in `now` does not count.
        now: what is asked for.
        lately: names that files of an older version lack.
    """
    now = json.loads(json.dumps(now))  # as it reads back
    asked = {name: value for name, value in now.items() if name in there or name not in lately}
    found = differences({name: there[name] for name in asked if name in there}, asked)
    hashes = {key for key, _, _ in found if key.endswith("sha256")}
    if len(hashes) < len(found):  # they follow from the rest
        found = [one for one in found if one[0] not in hashes]
    return [_told(*one) for one in found]


def hold(
    file: Path,
    there: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    lately: Collection[str] = (),
    delete: Path | None = None,
) -> None:
    """Hold what a file says that it is of to what is asked for now; arguments as of `unlike`.

    Args:
        file: the file, for the message.
        there: what it says.
        now: what is asked for.
        lately: names that files of an older version lack.
        delete: what is to be deleted to begin anew, if it is not the file itself.

    Raises:
        UserError: it is of something else; what differs is named, with both values.
    """
    if found := unlike(there, now, lately):
        raise UserError(
            f"{file}: made with other settings ({'; '.join(found)}). Give the same as then to go "
            f"on with it, choose another --out, or delete {delete or file} to make it anew."
        )


def _told(key: str, old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and ", " in old + new:
        a, b = old.split(", "), new.split(", ")
        gone, come = ([p for p in x if p not in y] for x, y in ((a, b), (b, a)))
        return f"{', '.join(gone) or 'less'} there, {', '.join(come) or 'less'} now"
    return f"{key}: {_short(old)} there, {_short(new)} now"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} of hash {hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]}"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{12,}", value):
        return f"hash {value[:8]}"
    return "nothing" if value is None else repr(value)
