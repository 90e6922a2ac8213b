"""Settings that have another name now: the old one works for one release, with a warning."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

C = TypeVar("C")

RENAMED: dict[str, dict[str, str]] = {
    "DistillConfig": {"seeds_by": "start_by", "draws": "trainings"},
    "OuterLoopConfig": {"check_seeds": "check_trainings", "seed_share": "start_share"},
    "CompareConfig": {
        "seeds_by": "start_by",
        "seeds": "trainings",
        "full_seeds": "full_trainings",
    },
}
"""By the name of the configuration: a setting's old name, and the one that it has now."""
_ALL = {old: new for names in RENAMED.values() for old, new in names.items()}


class OldNameWarning(FutureWarning):
    """A setting was given by its old name."""


def notice(old: str, new: str) -> str:
    """What is said to who gives an old name."""
    return f"{old} is called {new} now; the old name works until version 0.2."


def new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `run.yaml`, of whatever command and version, by their names of now."""
    return {
        _ALL.get(key, key): new_names(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }


def old_names_too(kind: type[C]) -> type[C]:
    """Let a dataclass be made by its fields' old names too."""
    init, renamed = kind.__init__, RENAMED[kind.__name__]

    @functools.wraps(init)
    def with_old_names(self: C, *args: Any, **given: Any) -> None:
        for old in given.keys() & renamed.keys():
            said = notice(f"{kind.__name__}({old}=...)", renamed[old])
            warnings.warn(said, OldNameWarning, stacklevel=2)
            given[renamed[old]] = given.pop(old)
        init(self, *args, **given)

    assert {field.name for field in dataclasses.fields(kind)} >= {*renamed.values()}  # pyright: ignore[reportArgumentType]
    kind.__init__ = with_old_names
    return kind
