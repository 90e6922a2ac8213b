"""The page of commands and flags, made from the configuration dataclasses when the site is built.

A verb's flags are the fields of the dataclass that its function parses; a field's docstring is the
flag's help. Nothing of the page is written by hand, so it cannot be out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, get_type_hints

from mkdocs.structure.files import File, Files

from nacd import cli
from nacd.config.settings import docstrings

PAGE = "reference.md"


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Commands",
        "",
        "Made from the code when the site was built; `nacd COMMAND --help-all` says the same.",
        "Flags that several commands share stand once, [below](#shared-flags). `--config FILE`",
        "reads the values of a `run.yaml` first; flags given beside it override them.",
        "",
        "```text",
        cli.USAGE,
        "```",
    ]
    shared: dict[str, type[Any]] = {}
    for verb, entry in cli.VERBS.items():
        kind = entry.kind()
        groups = [*_groups(kind)]
        shared |= {group.__name__: group for group in groups}
        lines += ["", f"## nacd {verb}", "", _first(kind), "", *_table(kind)]
        if groups:
            links = ", ".join(f"[{_title(g)}](#{_title(g).replace(' ', '-')})" for g in groups)
            lines += ["", f"And the flags of: {links}."]
    lines += ["", "## Shared flags"]
    for kind in shared.values():
        lines += ["", f"### {_title(kind)}", "", _first(kind), "", *_table(kind)]
    return "\n".join(lines) + "\n"


def _groups(kind: type[Any]) -> Iterator[type[Any]]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield hints[field.name]


def _title(kind: type[Any]) -> str:
    name = kind.__name__.removesuffix("Config")
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name)
    return words.strip()


def _first(kind: type[Any]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]


def _table(kind: type[Any]) -> list[str]:
    """A row a flag; fields that are groups of flags are left out."""
    hints = get_type_hints(kind)
    about = docstrings(kind)
    rows = ["| flag | default | |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        flag = "--" + field.name.replace("_", "-")
        hint = field.type if isinstance(field.type, str) else str(field.type)
        if "Positional" in hint:
            flag = field.name.upper()
        help_text = " ".join(about.get(field.name, "").split()).replace("|", "\\|")
        rows.append(f"| `{flag}` | {_default(field)} | {help_text}{_choices(hint)} |")
    return rows if len(rows) > 2 else []


def _choices(hint: str) -> str:
    """The values of a Literal, named."""
    if not hint.startswith("Literal"):
        return ""
    values = ast.literal_eval(hint.removeprefix("Literal").replace("[", "(").replace("]", ",)"))
    return " One of " + ", ".join(f"`{value}`" for value in values) + "."


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "(required)"
    value = field.default
    if value is None or value in ((), ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "`" + " ".join(str(v) for v in value) + "`"
    return f"`{value}`"


def on_files(files: Files, config: Any) -> Files:
    """Hook of mkdocs: the page beside the written ones."""
    files.append(File.generated(config, PAGE, content=page()))
    return files
