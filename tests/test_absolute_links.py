"""What a package index shows: no link of the README is relative there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from declared import ROOT

COMMAND = [sys.executable, str(ROOT / ".ci" / "absolute-links")]


def test_links_and_urls_of_a_release_are_addresses(tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([*COMMAND, "owner/name", "v1.2.3"], cwd=tmp_path, check=True)
    link = re.compile(r"\]\((?!#)([^)]+)\)")  # a heading of the page itself stays
    before = link.findall((ROOT / "README.md").read_text())
    after = link.findall((tmp_path / "README.md").read_text())
    assert len(before) == len(after) > 10
    relative = [target for target in before if "://" not in target]
    assert relative, "links of the repository hold in a fork"
    assert all(target.startswith("https://") for target in after)
    for was, now in zip(before, after, strict=True):
        assert now == was or now.endswith(f"/v1.2.3/{was}")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    assert pictures
    assert all(p.startswith("https://raw.githubusercontent.com/owner/name/") for p in pictures)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Homepage"] == "https://github.com/owner/name"
    assert project["name"] == "nacd"


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    found = subprocess.run([*COMMAND, "name"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode != 0
    assert "usage: .ci/absolute-links OWNER/NAME TAG" in found.stderr
