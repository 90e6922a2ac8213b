"""What the package imports is what it declares, and what it lacks is named with its command."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from declared import PROJECT, ROOT, closure, plain
from made_run import make_run
from nacd.cli import main
from nacd.data import mmlu_exemplars
from nacd.errors import UserError
from nacd.report.page import ReportConfig, write_report
from nacd.store.extras import EXTRAS

TOOLS = {"all", "dev", "docs"}
"""Extras that bring no library of a command."""


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module imported, by its first name, and whether a function has to be called first."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0], inside
        else:
            yield from imports(node, inside or isinstance(node, ast.FunctionDef))


def test_every_import_is_declared() -> None:
    core = closure(list(PROJECT["dependencies"]))
    known = packages_distributions()
    for file in (ROOT / "src").rglob("*.py"):
        for name, inside in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if name in sys.stdlib_module_names or name == "nacd":
                continue
            if name == "bitsandbytes":  # built for few machines: installed by its own name
                assert inside
            elif name in EXTRAS:  # what is TRL's stands in two modules, which are imported late
                late = name == "trl" and file.name in ("finetune.py", "trainer.py")
                assert inside or late, (file, name)
            else:
                assert {plain(owner) for owner in known[name]} & core, (file, name)


def test_every_library_has_the_extra_that_is_said() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = {plain(need): extra for extra in extras.keys() - TOOLS for need in extras[extra]}
    assert declared == {plain(module): extra for module, extra in EXTRAS.items()}
    (everything,) = extras["all"]
    assert set(re.findall(r"\w+", everything)) - {"nacd"} == extras.keys() - TOOLS
    installation = (ROOT / "docs" / "index.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", installation, re.MULTILINE)) == extras.keys() - {
        "dev",
        "docs",
    }


@pytest.mark.parametrize(
    ("command", "lacks", "said"),
    [
        ("train --data no-such-file", "trl", 'fine-tuning: needs the package trl.*"nacd[train]"'),
        (
            "evaluate --tasks arc_easy --model no/model",
            "lm_eval",
            '--tasks arc_easy: needs the package lm-eval.*"nacd[eval]"',
        ),
        (
            "compare --data no-such-file --accuracy text",
            "lm_eval",
            '--accuracy text: needs the package lm-eval.*"nacd[eval]"',
        ),
        (
            "distill --data no-such-file --track tensorboard",
            "tensorboard",
            '--track tensorboard: needs the package tensorboard.*"nacd[track]"',
        ),
        (
            "select --data no-such-file --method bm25",
            "bm25s",
            '--method bm25: needs the package bm25s.*"nacd[select]"',
        ),
    ],
)
def test_what_is_not_installed_is_named_first(
    command: str,
    lacks: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before a file is read or a model is loaded: neither is there."""
    monkeypatch.setitem(sys.modules, lacks, None)
    assert main(command.split()) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(re.sub(r"([\[\]])", r"\\\1", said), shown), shown


def test_the_exemplars_name_what_carries_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r'"nacd\[eval\]"`, or give --data a file'):
        mmlu_exemplars("cloze")


def test_a_page_without_charts_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    text = write_report(ReportConfig(make_run(tmp_path / "run"))).read_text(encoding="utf-8")
    assert "pip install &#34;nacd[report]&#34;" in text
    assert 'id="figures">[]</script>' in text, "the script has nothing to draw"
    assert len(text) < 200_000, "no plotly.js"
