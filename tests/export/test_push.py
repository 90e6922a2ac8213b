from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalTokenNotFoundError,
)
from test_dataset import CARD, RAW

from nacd.cli import main
from nacd.config.recipe import Recipe
from nacd.errors import UserError
from nacd.export import render_learned_card, write_dataset, write_trainers
from nacd.export.push import PushConfig, plan_upload, push
from nacd.model.lora import ModelConfig

httpx: Any = importlib.import_module(HTTPError.__module__.partition(".")[0])
"""httpx or httpx2, as the installed huggingface_hub has it."""


def make_run(folder: Path, license: str = "") -> Path:
    card = replace(CARD, license=license)
    write_dataset(folder / "dataset", RAW, render_learned_card(card, RAW))
    write_trainers(folder / "dataset", RAW, Recipe(), ModelConfig(), max_tokens=64)
    (folder / "soft_prompts.safetensors").write_bytes(b"not for the hub")
    return folder


class Hub:
    """What was asked of the hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None):
        self.calls: list[tuple[str, dict[str, Any]]] = []

        def create_repo(_: HfApi, repo_id: str, **options: Any) -> None:
            self.calls.append(("create", {"repo_id": repo_id} | options))
            if error is not None:
                raise error

        def upload_folder(_: HfApi, **options: Any) -> None:
            self.calls.append(("upload", options))

        monkeypatch.setattr(HfApi, "create_repo", create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)


def refusal(code: int) -> HfHubHTTPError:
    request = httpx.Request("POST", "https://huggingface.co/api/repos/create")
    return HfHubHTTPError("no", response=httpx.Response(code, request=request))


def test_without_yes_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(monkeypatch)
    run = make_run(tmp_path)
    before = (run / "dataset" / "README.md").read_text()
    assert main(["push", str(run), "--to", "ada/rows", "--license", "cc-by-4.0"]) == 0
    shown = capsys.readouterr().out
    size = (run / "dataset" / "train.jsonl").stat().st_size
    for part in ("ada/rows", "private", "train.jsonl", f"{size:,} B", "train_with/trl.yaml"):
        assert part in shown
    assert "cc-by-4.0" in shown
    assert "give --yes" in shown
    assert "soft_prompts" not in shown
    assert hub.calls == []
    assert (run / "dataset" / "README.md").read_text() == before


@pytest.mark.parametrize("name", ["models/mine", "{here}/models/mine"])
def test_a_model_by_a_path_of_this_machine_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    config = PushConfig(run, to="ada/rows", license="mit")
    assert "path of this machine" not in push(config)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    mine = ModelConfig(model=name.format(here=tmp_path))
    write_trainers(run / "dataset", RAW, Recipe(), mine, max_tokens=64)
    said = [line for line in push(config).splitlines() if "path of this machine" in line]
    assert [line.split()[0] for line in said] == [
        f"train_with/{trainer}.yaml" for trainer in ("axolotl", "llamafactory", "trl")
    ]
    said = yaml.safe_load((run / "dataset" / "train_with" / "trl.yaml").read_text())
    assert said["model_name_or_path"] == str(tmp_path / "models" / "mine")


def test_yes_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    run = make_run(tmp_path)
    said = push(PushConfig(run, "ada/rows", license="cc-by-4.0", yes=True))
    assert said.endswith("https://huggingface.co/datasets/ada/rows")
    (first, created), (second, sent) = hub.calls
    assert (first, second) == ("create", "upload")
    assert created["private"] is True
    assert created["repo_type"] == sent["repo_type"] == "dataset"
    assert sent["folder_path"] == run / "dataset"
    assert {"README.md", "train.jsonl", "train.parquet"} < set(sent["allow_patterns"])
    card = (run / "dataset" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "**Unknown.**" not in card


def test_the_cards_own_licence_is_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path, "apache-2.0")
    assert plan_upload(PushConfig(run, "ada/rows")).license == "apache-2.0"
    assert plan_upload(PushConfig(run / "dataset", "ada/rows")).folder == run / "dataset"


def test_what_trainers_have_made_stays_here(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mit")
    before = plan_upload(PushConfig(run, "ada/rows")).files
    for name in ("trained/rows-0/trl/adapter.safetensors", ".cache/lock", "mine/trained.yaml"):
        (run / "dataset" / name).parent.mkdir(parents=True)
        (run / "dataset" / name).write_text("- a list")
    assert plan_upload(PushConfig(run, "ada/rows")).files.keys() - before == {"mine/trained.yaml"}


def test_another_licence_than_the_cards_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "cc-by-nc-4.0")
    said = push(PushConfig(run, "ada/rows", license="mit"))
    assert "Licence: mit (in place of cc-by-nc-4.0, which the card says)." in said
    assert "in place of" not in push(PushConfig(run, "ada/rows", license="cc-by-nc-4.0"))


@pytest.mark.parametrize("license", ["MIT License", "mit: x", "cc\nby", "-", "[mit]", "ünknown"])
def test_a_licence_that_is_no_name_of_the_hubs_is_refused(license: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(UserError, match=r"--license .*apache-2\.0, cc-by-4\.0, other"):
        push(PushConfig(run, "ada/rows", license=license))
    card = replace(CARD, license=license)
    write_dataset(run / "dataset", RAW, render_learned_card(card, RAW))
    with pytest.raises(UserError, match=r"--license .*apache-2\.0, cc-by-4\.0, other"):
        push(PushConfig(run, "ada/rows"))
    assert "Licence: other" in push(PushConfig(run, "ada/rows", license="other"))


def test_rows_that_are_not_the_cards_are_refused(tmp_path: Path) -> None:
    """Parquet, Markdown and JSON lines would say different things to different readers."""
    config = PushConfig(make_run(tmp_path, "mit"), "ada/rows")
    card, rows = (tmp_path / "dataset" / name for name in ("README.md", "train.jsonl"))
    good, lines = card.read_text(), rows.read_text()
    rows.write_text(lines.replace(" since", " because"))
    with pytest.raises(UserError, match=r"not of the rows in train\.jsonl.*rows-.*once more"):
        push(config)
    rows.write_text(lines)
    for text, part in (
        ("", r"\(none\)"),
        ("# Rows", r"\(none\)"),
        ("---\nconfigs: x\n---\n", r"\(none\)"),
        ("---\nconfigs:\n- config_name: default\n---\n", "default"),
        (good.replace("configs:", "configs: [}"), "cannot be read"),
    ):
        card.write_text(text)
        with pytest.raises(UserError, match=part) as caught:
            push(config)
        assert "once more" in str(caught.value)
    card.write_text(good)
    assert "ada/rows" in push(config)


def test_mistakes_are_named_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set in it"):
        push(PushConfig(tmp_path / "none", "ada/rows", yes=True))
    run = make_run(tmp_path)
    for name in ("", "rows", "ada/", "/rows", "a/b/c", "ada/rows!"):
        with pytest.raises(UserError, match="--to"):
            push(PushConfig(run, name, license="mit", yes=True))
    with pytest.raises(UserError, match="--license NAME"):
        push(PushConfig(run, "ada/rows", yes=True))


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (LocalTokenNotFoundError("no token\nat all"), "hf auth login"),
        (refusal(401), "hf auth login"),
        (refusal(403), "write access"),
        (refusal(500), "answered 500"),
        (refusal(400), "does not take this: no message."),
        (ValueError("Invalid metadata in README.md.\n- license must be one of"), "must be one of."),
        (httpx.ConnectError("name resolution\nfailed"), "check the network"),
        (TimeoutError("slow"), "check the network"),
    ],
)
def test_what_the_hub_says_is_one_line(
    error: Exception,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Hub(monkeypatch, error)
    run = make_run(tmp_path, "mit")
    assert main(["push", str(run), "--to", "ada/rows", "--yes"]) == 1
    shown = capsys.readouterr().err.strip()
    assert part in shown
    assert "\n" not in shown


def test_a_link_out_of_the_folder_is_not_uploaded(tmp_path: Path) -> None:
    run, secret = make_run(tmp_path / "run", "mit"), tmp_path / "id_rsa"
    secret.write_text("mine alone")
    (run / "dataset" / "notes.txt").symlink_to(secret)
    with pytest.raises(UserError, match=r"notes\.txt: a link to .*id_rsa.*remove the link"):
        plan_upload(PushConfig(run, "ada/rows"))
