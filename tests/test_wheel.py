"""The wheel, built of the sdist, with the libraries that it declares and no others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from declared import PROJECT, ROOT, closure, plain

EXTRA_NEEDS: dict[str, list[str]] = PROJECT["optional-dependencies"]
EVERY = re.findall(r"\w+", EXTRA_NEEDS["all"][0])[1:]
LAUNCH = """
import importlib.metadata, json, re, sys
from importlib.machinery import PathFinder

allowed, modules, commands = json.loads(sys.argv[1])

class Bare:
    '''The environment without the distributions that are not allowed.'''

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in modules:
            return None
        return PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(context):
        for found in PathFinder.find_distributions(context):
            if re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower() in allowed:
                yield found

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
import nacd
from nacd.cli import main

assert nacd.__file__.startswith(sys.argv[2]), nacd.__file__
for command in commands:
    print("status", main(command), flush=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, of the sdist, of what the repository holds; no index is asked."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    shutil.copytree(
        ROOT, source, ignore=lambda folder, names: left_out(names, Path(folder) == ROOT)
    )
    code = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run([sys.executable, "-c", code], cwd=source)
    (sdist,) = place.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", "--wheel-dir", place, sdist)
    (built,) = place.glob("*.whl")
    return built


def left_out(names: list[str], top: bool) -> set[str]:
    """What a clone would not hold."""
    return {
        name
        for name in names
        if name == "__pycache__"
        or name.endswith(".egg-info")
        or (top and (name[0] == "." or name in ("runs", "build", "dist", "shared")))
    }


def run(command: Sequence[str | Path], cwd: Path | None = None, **more: str) -> str:
    """A command's output; it sees nothing of this environment's own nacd by a variable."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def pip(verb: str, *more: str | Path) -> None:
    run([sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", "--no-index", *more])


def launch(site: Path, extras: Sequence[str], *commands: str) -> tuple[list[int], str]:
    """Exit statuses and output of commands of the wheel, with those extras' libraries alone."""
    needs = [*PROJECT["dependencies"], *(need for extra in extras for need in EXTRA_NEEDS[extra])]
    allowed = closure(needs) | {"nacd"}
    hidden = [
        module
        for module, owners in packages_distributions().items()
        if not {plain(owner) for owner in owners} & allowed
    ]
    given = json.dumps([sorted(allowed), hidden, [command.split() for command in commands]])
    shown = run([sys.executable, "-c", LAUNCH, given, site], cwd=site.parent, PYTHONPATH=str(site))
    return [int(code) for code in re.findall(r"^status (\d+)$", shown, re.MULTILINE)], shown


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (described,) = (name for name in names if name.endswith("/METADATA"))
        about = Parser().parsestr(opened.read(described).decode())
    source = ROOT / "src"
    held = {
        str(file.relative_to(source)) for file in (source / "nacd").rglob("*") if file.is_file()
    }
    assert {name for name in names if ".dist-info/" not in name} == {
        name for name in held if "__pycache__" not in name
    }
    assert {"nacd/py.typed", "nacd/report/templates/page.js"} <= names
    needs = [need for need in about.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert {plain(need) for need in needs} == {plain(need) for need in PROJECT["dependencies"]}
    assert set(about.get_all("Provides-Extra", [])) == EXTRA_NEEDS.keys()
    assert about["License-Expression"] == "Apache-2.0"
    assert str(about.get_payload()).startswith("# NACD")
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as packed:
        files = {name.partition("/")[2] for name in packed.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt"} <= files
    assert not [name for name in files if name.startswith("tests")], "half of them would be there"


@pytest.mark.slow
def test_the_wheel_runs_without_extras_and_with_all(
    wheel: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    pip("install", "--target", site, wheel)
    rows = [{"instruction": f"Name thing {i}", "output": f"name {i}"} for i in range(24)]
    questions = [
        {"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(4)
    ]
    for name, held in (("rows", rows), ("questions", questions)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, held)))
    train = f"train --model {tiny_folder('llama')} --data rows.jsonl --template alpaca --epochs 1"
    codes, shown = launch(
        site,
        [],
        "--help",
        "--version",
        f"select --method random --model {tiny_folder('llama')} --data rows.jsonl --budget 8 "
        "--template alpaca --out chosen",
        "report chosen",
        f"evaluate --model {tiny_folder('llama')} --data questions.jsonl --template qa",
        train,
    )
    assert codes == [0, 0, 0, 0, 0, 1], shown
    assert "nacd train: fine-tuning: needs the package trl" in shown
    assert 'their accuracy is left out, as it needs lm-eval: pip install "nacd[eval]"' in shown
    page = tmp_path / "chosen" / "report.html"
    assert "The charts are left out" in page.read_text(encoding="utf-8")
    codes, shown = launch(site, EVERY, "report chosen", train)
    assert codes == [0, 0], shown
    assert "The charts are left out" not in page.read_text(encoding="utf-8")
