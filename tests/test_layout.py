"""A package imports only from those below it, and none in a circle."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import nacd

ROOT = Path(nacd.__file__).parent
ORDER = (
    *("errors", "terminal", "statistics", "store", "data", "config", "export", "model"),
    *("training", "meta", "experts", "selection", "distillation", "costs", "comparison"),
    *("checking", "report", "commands", "cli", "__init__", "__main__"),
)
"""Lowest first."""


def imports() -> dict[str, set[str]]:
    """For every module of the package, those of the package that it names, however late."""
    modules = {
        ".".join(("nacd", *file.relative_to(ROOT).with_suffix("").parts)): file
        for file in ROOT.rglob("*.py")
    }
    found: dict[str, set[str]] = defaultdict(set)
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nacd":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].add(whole if whole in modules else str(node.module))
            elif isinstance(node, ast.Import):
                found[name] |= {a.name for a in node.names if a.name.split(".")[0] == "nacd"}
    return found


def place(module: str) -> int:
    return ORDER.index(module.split(".")[1] if "." in module else "__init__")


def test_packages_import_only_from_those_below_them():
    climbs = {
        (name, other)
        for name, others in imports().items()
        for other in others
        if place(other) > place(name) and name != "nacd.__main__"
    }
    assert not climbs


def test_every_package_has_its_place():
    there = {file.stem for file in ROOT.glob("*.py")} | {
        folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()
    }
    assert there == set(ORDER)


def test_no_module_imports_in_a_circle():
    # an `__init__` that hands out its package's names is no module of its own here
    graph = {
        name: {other for other in others if other != name and not other.endswith("__init__")}
        for name, others in imports().items()
        if not name.endswith("__init__")
    }
    TopologicalSorter(graph).prepare()
