"""Data sets of the hub: their rows, and the licence that their card names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nacd.errors import UserError

PATIENCE = 10.0
"""Seconds to wait for a data set's card."""


def hub_rows(name: str, split: str, flag: str) -> Iterator[tuple[str, Any]]:
    """Pairs of (where the row came from, the row) of a hub data set.

    Args:
        name: `owner/name`, `owner/name:config`, `owner/name:config:split` or `owner/name::split`.
        split: the split where the name says none.
        flag: the flag that named the data, for error messages.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    identifier, config, own = hub_parts(name)
    split = own or split
    try:
        loaded = datasets.load_dataset(identifier, config or None, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        raise UserError(
            f"could not load {name!r}: no such file here, and the hub gave "
            f"{type(error).__name__}: {_first_line(error)}. If this machine is offline, give "
            f"{flag} a local file; else check the spelling (owner/name, owner/name:config or "
            f"owner/name:config:split) and that there is a split {split!r}."
        ) from None
    place = f"{identifier}:{config}" if config else identifier
    number, rows = 0, iter(loaded)
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # images and sound are decoded here, by libraries of their own
            raise UserError(
                f"{place}[{split}]: what stands after row {number} cannot be read "
                f"({type(error).__name__}: {_first_line(error)}). Save the columns of text as a "
                f"file, and give {flag} that."
            ) from None
        if row is None:
            return
        number += 1
        yield f"{place}[{split}] row {number}", row


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def hub_parts(name: str) -> tuple[str, str, str]:
    """(data set, configuration, split) of a hub name; empty where it says none."""
    identifier, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    return identifier, config, split


def hub_license(data: str) -> str:
    """The licence that a hub data set's card names.

    Returns:
        The hub's name for it (`apache-2.0`); empty for a file, for a card that names none or
        several, and where the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    identifier, _, _ = hub_parts(data)
    here = any(Path(name).expanduser().exists() for name in (data, identifier))
    if here or not re.fullmatch(r"[\w.-]+/[\w.-]+", identifier):
        return ""
    try:
        card = HfApi().dataset_info(identifier, timeout=PATIENCE).card_data
    except Exception:  # offline, private, renamed: the card then says that nobody has said
        return ""
    found = card.get("license") if card is not None else None
    return found if isinstance(found, str) else ""
