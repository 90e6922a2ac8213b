"""`nacd push`: a run's data set to the hub; without --yes, only what would be uploaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import (  # httpx or httpx2, as it has it
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from nacd.config.commands import PushConfig
from nacd.errors import UserError
from nacd.export.card import header_of, with_license
from nacd.export.dataset import lines_name
from nacd.export.trainers import TRAINED
from nacd.store.files import write_text


@dataclass(frozen=True)
class Upload:
    """What goes up."""

    folder: Path
    """The data set folder."""
    files: dict[str, int]
    """Bytes of each file, by its path in the folder."""
    to: str
    license: str
    source: str
    """The licence that the card says, where it is another one."""
    public: bool
    local: tuple[str, ...] = ()
    """Files that name a model by a path of this machine."""

    def describe(self) -> str:
        """One line a file, then where it goes and under which licence."""
        width = max(len(name) for name in self.files)
        lines = [f"  {name:<{width}}  {size:>11,} B" for name, size in self.files.items()]
        seen = "public" if self.public else "private"
        instead = f" (in place of {self.source}, which the card says)" if self.source else ""
        return "\n".join(
            [
                f"{self.folder} -> https://huggingface.co/datasets/{self.to} ({seen}, if new)",
                *lines,
                f"  {len(lines)} files, {sum(self.files.values()):,} B",
                f"Licence: {self.license}{instead}. The rows hold responses of the source data, "
                "word for word: make sure that it allows this.",
                *(f"{name} names its model by a path of this machine." for name in self.local),
            ]
        )


def plan_upload(config: PushConfig) -> Upload:
    """What `push` would upload; nothing is sent or changed.

    Raises:
        UserError: no data set there, one whose rows are not those of its card, a name without
            owner, or an unknown licence.
    """
    folder = config.run if (config.run / "train.jsonl").is_file() else config.run / "dataset"
    if not (folder / "train.jsonl").is_file() or not (folder / "README.md").is_file():
        raise UserError(
            f"{config.run}: no data set in it (expected dataset/train.jsonl and "
            "dataset/README.md); give the run folder of a finished `nacd distill` or `nacd select`."
        )
    owner, slash, name = config.to.partition("/")
    if not (owner and slash and name):
        raise UserError(f"--to {config.to!r}: expected owner/name, as in --to ada/distilled-qa.")
    try:
        validate_repo_id(config.to)
    except HFValidationError as error:
        raise UserError(f"--to {config.to}: not a name that the hub takes: {error}") from error
    said = _said_license(folder)
    license = config.license or said
    if not license:
        raise UserError(
            f"{folder / 'README.md'}: the licence of the source data is unknown; find out, and "
            "give --license NAME by the hub's name for it (apache-2.0, cc-by-4.0, other)."
        )
    if not all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) for name in license.split(", ")):
        said_by = "--license" if config.license else f"{folder / 'README.md'}: the licence"
        raise UserError(
            f"{said_by} {license!r} is no name of the hub's; give --license NAME as it writes them "
            "(apache-2.0, cc-by-4.0, other)."
        )
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files = [file for file in files if not _left_here(file.relative_to(folder))]
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{file}: a link to {file.resolve()}, which is not in this folder and is not "
                "uploaded; remove the link, or copy the file in its place."
            )
    found = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    local = tuple(name for name in found if name.endswith(".yaml") and _local(folder / name))
    other = said if said != license else ""
    return Upload(folder, found, config.to, license, other, config.public, local)


def push(config: PushConfig) -> str:
    """List what would be uploaded or, with `yes`, upload it.

    With a licence given, the card in the folder is made to say it before it goes up.

    Returns:
        Text for the user.

    Raises:
        UserError: see `plan_upload`; or the hub cannot be reached, or refuses.
    """
    upload = plan_upload(config)
    if not config.yes:
        return f"{upload.describe()}\nNothing was uploaded; give --yes to do it."
    card = upload.folder / "README.md"
    if config.license:
        write_text(card, with_license(card.read_text(encoding="utf-8"), config.license))
    try:
        api = HfApi()
        api.create_repo(upload.to, repo_type="dataset", private=not upload.public, exist_ok=True)
        api.upload_folder(
            repo_id=upload.to,
            repo_type="dataset",
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message="Upload by nacd push",
        )
    except LocalTokenNotFoundError as error:
        raise UserError(f"--to {upload.to}: {_LOGIN}") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code == 401:
            raise UserError(f"--to {upload.to}: {_LOGIN}") from error
        if code == 400:
            raise UserError(
                f"--to {upload.to}: the hub does not take this: {_line(error.server_message)} Mend "
                "that (a licence, by --license NAME), and run the same command again."
            ) from error
        if code in (403, 404):
            raise UserError(
                f"--to {upload.to}: the hub refused ({code}); your token may not write there. "
                "Give a name under your own, or log in with a token that has write access."
            ) from error
        raise UserError(
            f"--to {upload.to}: the hub answered {code}; run the same command again later."
        ) from error
    except ValueError as error:  # the header of README.md, which the hub has looked at
        raise UserError(
            f"--to {upload.to}: the hub does not take the card: {_line(error)} Give --license a "
            "name that it knows, or mend README.md."
        ) from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"--to {upload.to}: HF_HUB_OFFLINE is set; unset it to upload.") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"--to {upload.to}: the hub cannot be reached ({type(error).__name__}); check the "
            "network, and run the same command again."
        ) from error
    return f"{len(upload.files)} files: https://huggingface.co/datasets/{upload.to}"


def _line(said: object) -> str:
    """What the hub said, on one line and with a full stop."""
    return " ".join(str(said or "no message").split()).rstrip(".") + "."


_LOGIN = "no valid token for the hub; run `hf auth login`, or set HF_TOKEN."


def _said_license(folder: Path) -> str:
    """The licence that the card's header says, the header being one of the rows beside it."""
    card = folder / "README.md"
    try:
        said = header_of(card.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{card}: its header cannot be read ({why}). {_ANEW}") from error
    configs = said.get("configs")
    names = [c.get("config_name") for c in configs or () if isinstance(c, dict)]
    rows = lines_name((folder / "train.jsonl").read_bytes())
    if names != [rows]:
        raise UserError(
            f"{card}: its header is not of the rows in train.jsonl: it has the configuration "
            f"{', '.join(map(str, names)) or '(none)'}, where {rows} was expected. {_ANEW}"
        )
    license = said.get("license") or ""
    return ", ".join(map(str, license)) if isinstance(license, list) else str(license)


_ANEW = (
    "Run the command that made the run once more: it writes all files of the data set anew. Rows "
    "that you have changed yourself are another data set: `hf upload` takes any folder."
)


def _local(file: Path) -> bool:
    """Whether a trainer's configuration names a model by an absolute path."""
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    keys = ("model_name_or_path", "base_model")
    names = [said.get(key) for key in keys] if isinstance(said, dict) else []
    return any(isinstance(name, str) and Path(name).is_absolute() for name in names)


def _left_here(path: Path) -> bool:
    """Whether a file is no part of the data set: hidden, or made by a trainer."""
    return path.parts[0] == TRAINED or any(part.startswith(".") for part in path.parts)
