"""Settings by their old names: flags, YAML keys, Python keywords and run folders."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nacd.cli import parse
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.compare import CompareConfig
from nacd.config.settings import to_dict
from nacd.errors import UserError
from nacd.store.renamed import RENAMED, OldNameWarning
from nacd.store.run import RunFolder, settings

OLD = "--seeds-by longest --draws=4 --check-seeds 2 --seed-share 0.5 --data a.jsonl"
NEW = "--start-by longest --trainings 4 --check-trainings 2 --start-share 0.5 --data a.jsonl"


def old_yaml(config: DistillConfig) -> dict[str, object]:
    """The settings as a version before the renaming wrote them."""
    values = to_dict(config)
    for kind, group in (("DistillConfig", values), ("OuterLoopConfig", values["outer"])):
        for old, new in RENAMED[kind].items():
            group[old] = group.pop(new)
    return values


def test_old_flags_say_the_new_one_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("distill", OLD.split()) == parse("distill", NEW.split())
    said = capsys.readouterr().err.splitlines()
    names = [re.findall(r"--[a-z-]+", flags)[:4] for flags in (OLD, NEW)]
    for line, old, new in zip(said, *names, strict=True):
        assert line.startswith(f"nacd distill: {old} is called {new} now;")
    old = parse("compare", ["--seeds", "3", "--full-seeds", "2", "--seeds-by", "longest"])
    assert (old.trainings, old.full_trainings, old.start_by) == (3, 2, "longest")


def test_an_old_name_is_one_of_its_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("distill", ["--full-seeds", "2"])
    assert "--full-seeds: no such flag" in capsys.readouterr().err


def test_old_keys_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parse("distill", NEW.split())
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(old_yaml(config)))
    assert parse("distill", ["--config", str(file)]) == config
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert f"nacd distill: {file}: draws is called trainings now; " in "\n".join(said)
    assert f"{file}, outer: check_seeds is called check_trainings now; " in "\n".join(said)


def test_old_keywords_in_python() -> None:
    with pytest.warns(OldNameWarning, match=r"DistillConfig\(draws=...\) is called trainings now"):
        old = DistillConfig(draws=7)  # pyright: ignore[reportCallIssue]
    assert old == DistillConfig(trainings=7)
    with pytest.warns(OldNameWarning):
        assert replace(old, draws=2).trainings == 2  # pyright: ignore[reportCallIssue]
    with pytest.warns(OldNameWarning):
        assert OuterLoopConfig(check_seeds=1).check_trainings == 1  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="drafts"):
        CompareConfig(drafts=1)  # pyright: ignore[reportCallIssue]


def test_a_folder_of_old_names_is_the_same_run(tmp_path: Path) -> None:
    config = DistillConfig(data=DataConfig(data="a.jsonl"), trainings=4)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(old_yaml(config)))
    (tmp_path / "results.json").write_text("{}")
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="trainings: 4 there, 5 now"):
        folder.open(to_dict(replace(config, trainings=5)))
    folder.open(to_dict(config))
    assert settings(tmp_path) == yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert settings(tmp_path)["trainings"] == 4
