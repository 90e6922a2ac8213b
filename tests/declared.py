"""What `pyproject.toml` declares, and what that comes to in the environment of the tests."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(requirement: str) -> str:
    """A requirement's or distribution's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[(]", requirement)[0]).lower()


def closure(names: list[str]) -> set[str]:
    """Distributions and all that they require, as they are installed."""
    found: set[str] = set()
    while names:
        name = plain(names.pop())
        if name not in found:
            found.add(name)
            try:
                names += [need for need in requires(name) or [] if "extra ==" not in need]
            except PackageNotFoundError:  # for another platform
                continue
    return found
