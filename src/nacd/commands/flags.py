"""Flags of a command: the help that most need, all of it, and which flag a mistyped one meant."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

from nacd.config.settings import docstrings, from_dict, read_settings
from nacd.errors import UserError
from nacd.store.renamed import RENAMED, OldNameWarning, notice

SHARED = ("--config", "--json", "--help", "--help-all")
"""Flags of every command that are no fields of its configuration."""


def parse(
    kind: type[Any], verb: str, args: Sequence[str], *, description: str | None = None
) -> Any:
    """Flags to a configuration; `--config FILE` gives the values that flags then override.

    Args:
        kind: the configuration's dataclass.
        verb: the command's name.
        args: what stands after it.
        description: what the command does, where the docstring of `kind` does not say it.

    Raises:
        UserError: a file that `--config` names cannot be used.
        SystemExit: help was asked for, or a flag cannot be read; it has been said.
    """
    import tyro

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", OldNameWarning)
        rest, default = _without_config(kind, args)
    for warning in said:
        print(f"nacd {verb}: {warning.message}", file=sys.stderr)
    rest = [_by_its_new_name(arg, kind, verb) for arg in rest]
    options: dict[str, Any] = {} if default is None else {"default": default}
    config, unknown = tyro.cli(
        kind,
        args=["--help" if arg == "--help-all" else arg for arg in rest],
        prog=f"nacd {verb}",
        config=(tyro.conf.OmitArgPrefixes,),
        description=description,
        return_unknown_args=True,
        **options,
    )
    if unknown:
        _refuse(verb, unknown[0].partition("=")[0], kind)
    return config


def print_usual(kind: type[Any], verb: str, names: Sequence[str], required: str) -> None:
    """Print help of some flags of a configuration, in the order given.

    Args:
        kind: the configuration's dataclass.
        verb: the command's name.
        names: fields, of `kind` or of a group of flags in it.
        required: the one of them that has to be given; empty: none.
    """
    import tyro

    known = {name: entry for name, *entry in _fields(kind())}
    fields = []
    for name in names:
        hint, default, about = known[name]
        given = [inner for inner in get_args(hint) if inner is not type(None)]
        optional = len(given) == 1 and hint == given[0] | None
        unset = "(optional)" if default in (None, "", ()) else None  # None: the default
        how = tyro.conf.arg(
            help=" ".join(about.split()),
            metavar=given[0].__name__.upper() if optional else None,
            help_behavior_hint="(required)" if name == required else unset,
        )
        fields.append((name, Annotated[hint, how], dataclasses.field(default=default)))
    usual = dataclasses.make_dataclass("Usual", fields)
    with contextlib.suppress(SystemExit):
        tyro.cli(usual, args=["--help"], prog=f"nacd {verb}", description="")


def near(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the known word that is nearest, or nothing."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else "."


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def _by_its_new_name(arg: str, kind: type[Any], verb: str) -> str:
    """An argument; of an old flag, the new one in its place, and a line that says so."""
    old, equals, value = arg.partition("=")
    new = _renamed(kind).get(old)
    if new is None:
        return arg
    print(f"nacd {verb}: {notice(old, new)}", file=sys.stderr)
    return new + equals + value


def _renamed(kind: type[Any]) -> dict[str, str]:
    """Old flags of a configuration and of its groups, and what they are called now."""
    found = {flag(old): flag(new) for old, new in RENAMED.get(kind.__name__, {}).items()}
    for hint in get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= _renamed(hint)
    return found


def _refuse(verb: str, word: str, kind: type[Any]) -> NoReturn:
    flags = [*SHARED]
    for name, hint in _names(kind):
        flags += [flag(name)] + ([flag(f"no_{name}")] if hint is bool else [])
    what = "no such flag" if word.startswith("-") else "belongs to no flag"
    print(
        f"nacd {verb}: {word}: {what}{near(word, flags)}\n"
        f"`nacd {verb} --help-all` lists all flags.",
        file=sys.stderr,
    )
    raise SystemExit(2)


def _names(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Name and type of every flag of a configuration, those of its groups among them."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _names(hint)
        else:
            yield name, hint


def _fields(config: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and docstring of every flag, groups of flags after the others."""
    hints, about = get_type_hints(type(config)), docstrings(type(config))
    for name, hint in hints.items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield name, hint, value, about.get(name, "")


def _without_config(kind: type[Any], args: Sequence[str]) -> tuple[list[str], Any]:
    """The arguments without `--config FILE`, and the configuration that it gives; None: none."""
    rest = list(args)
    for i, arg in enumerate(rest):
        name, equals, value = arg.partition("=")
        if name != "--config":
            continue
        if not equals and i + 1 == len(rest):
            raise UserError("--config: give a run.yaml after it.")
        path = Path(value if equals else rest[i + 1])
        del rest[i : i + (1 if equals else 2)]
        return rest, from_dict(kind, read_settings(path, "--config "), str(path))
    return rest, None
