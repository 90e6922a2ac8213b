"""Configurations as plain values and back, every value held to the type of its field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_origin, get_type_hints

from nacd.errors import UserError
from nacd.store.renamed import RENAMED, OldNameWarning, notice

C = TypeVar("C")
if TYPE_CHECKING:
    Kept = TypeVar("Kept")
    Given = TypeVar("Given")

    class Converted(Generic[Kept, Given]):
        """For type checkers: a field that is given one type and holds another."""

        def __init__(self, default: Kept) -> None: ...

        def __get__(self, config: Any, kind: Any) -> Kept:
            """What the configuration holds."""
            ...

        def __set__(self, config: Any, value: Given) -> None:
            """What it may be given."""
            ...

    Folder = Converted[Path, str | os.PathLike[str]]
    OtherFolder = Converted[Path | None, str | os.PathLike[str] | None]
else:  # what a flag is parsed as
    Folder, OtherFolder = Path, Path | None


def convert(config: Any, **how: Callable[[Any], Any]) -> None:
    """Hold fields of a frozen configuration, unless they are None, in the form that they keep."""
    for name, make in how.items():
        if getattr(config, name) is not None:
            object.__setattr__(config, name, make(getattr(config, name)))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that YAML and JSON take."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


def from_dict(kind: type[C], values: Mapping[str, Any], where: str) -> C:
    """A configuration from plain values; the inverse of `to_dict`.

    What YAML reads as another type is taken for what it must be: 1e-3 for a number, 112 for text, a
    value alone for a list of one.

    Raises:
        UserError: an unknown key, or a value of another type; it is named, with the file it stands
            in.
    """
    return kind(**_fields(kind, values, where))


def read_settings(file: Path, flag: str = "") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        file: the file.
        flag: what named it, for messages, with the space behind it.

    Raises:
        UserError: it is not there, or holds anything else.
    """
    import yaml

    if not file.is_file():
        raise UserError(f"{flag}{file}: no such file.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}{file}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{flag}{file}: expected a mapping of settings, as in run.yaml.")
    return values


def check_values(config: Any) -> None:
    """Refuse a configuration whose values are not of their fields' types.

    Raises:
        UserError: the first such value, by its flag.
    """
    hints = get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check_values(value)
        else:
            _value(hints[entry.name], value, f"--{entry.name.replace('_', '-')} {value}")


def _fields(kind: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    groups = {key: hint for key, hint in hints.items() if dataclasses.is_dataclass(hint)}
    renamed = RENAMED.get(kind.__name__, {})
    for key in values.keys() & renamed.keys():
        warnings.warn(notice(f"{where}: {key}", renamed[key]), OldNameWarning, stacklevel=3)
    values = {renamed.get(key, key): value for key, value in values.items()}
    for key in values:
        if key in hints:
            continue
        homes = [name for name, group in groups.items() if key in get_type_hints(group)]
        mend = f"it stands under `{homes[0]}:`" if homes else f"known: {', '.join(hints)}"
        raise UserError(f"{where}: unknown key {key}; {mend}.")
    factories: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(kind)}
    built: dict[str, Any] = {}
    for key, value in values.items():
        if key not in groups:
            built[key] = _value(hints[key], value, f"{where}: {key}: {value!r}")
            continue
        if not isinstance(value, Mapping):
            known = next(iter(get_type_hints(groups[key])))
            raise UserError(
                f"{where}: {key}: {value!r}: must hold settings of its own, as in run.yaml "
                f"({key}: {{{known}: ...}})."
            )
        own = _fields(groups[key], value, f"{where}, {key}")
        built[key] = dataclasses.replace(factories[key](), **own)  # the rest as the default has it
    return built


def _value(hint: Any, value: Any, named: str) -> Any:
    """A value as its field's type."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if get_origin(hint) is tuple and not isinstance(value, (list, tuple)):
        value = [value]
    adapter = TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{named}: {'; '.join(dict.fromkeys(_reasons(error)))}.") from None


def _reasons(error: Any) -> Iterator[str]:
    for found in error.errors():
        yield re.sub(r", (got|unable) .*", "", found["msg"].replace("Input should be", "must be"))


def docstrings(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, those of its bases among them."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_docstrings(base)
    return found


def _own_docstrings(kind: type[Any]) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for entry, below in pairwise(body.body):
        if (
            isinstance(entry, ast.AnnAssign)
            and isinstance(entry.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[entry.target.id] = inspect.cleandoc(str(below.value.value))
    return found
