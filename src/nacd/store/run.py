"""A run folder: its configuration, and going on where it stopped; its stages' results: `Cache`.

`run.yaml` holds the resolved configuration (it replays the run), `provenance` beside it the
versions and the data's hash. A folder made with another configuration is refused, the differing
keys named. Metrics are JSON lines; on going on, lines past the saved state are cut off.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nacd.errors import UserError
from nacd.store import claims, processes
from nacd.store.alone import FILE, Lock, lock
from nacd.store.cache import Cache
from nacd.store.files import write_text
from nacd.store.key import differences, flatten
from nacd.store.renamed import new_names

EMPTY = {"run.yaml", "provenance.json", "stages.json", "memory.json"}
"""Files of a run that has made nothing yet."""
LIBRARIES = ("nacd", "torch", "transformers", "peft", "trl", "datasets", "lm-eval", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of the libraries that figures depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def settings(path: Path) -> Mapping[str, Any]:
    """A folder's `run.yaml`, by the names of now; empty where there is none or it is no mapping.

    Raises:
        UserError: it cannot be read as YAML; it is named.
    """
    file = path / "run.yaml"
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{file}: damaged, not YAML ({why}); bring it back, or choose another --out."
        ) from error
    return new_names(config) if isinstance(config, dict) else {}


class RunFolder(Cache):
    """One run on disk."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.lock: Lock | None = None

    def open(
        self,
        config: Mapping[str, Any],
        *,
        may_differ: Iterable[str] = ("out",),
        defaults: Mapping[str, Any] | None = None,
        alone: bool = True,
    ) -> None:
        """Make the folder, or check that it belongs to this configuration.

        A run that has made nothing yet, whose model could not be loaded, say, begins anew.

        Args:
            config: the configuration.
            may_differ: dotted keys that need not be as they were.
            defaults: what keys are taken for that the folder, of an older version, does not have.
            alone: whether no other job may be at work in the folder.

        Raises:
            UserError: the folder is of another configuration (the differing keys are named), is no
                run folder, cannot be written, or another process is at work in it.
        """
        self.shared = not alone

        def check() -> None:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"--out {self.path}: a file, not a folder; choose another --out.")
            with self.turn("open"):
                self._open(config, set(may_differ), defaults or {}, alone)

        processes.first(check)

    def _open(
        self, config: Mapping[str, Any], free: set[str], defaults: Mapping[str, Any], alone: bool
    ) -> None:
        file = self.path / "run.yaml"
        beside = [e for e in self.path.glob("*") if ".partial-" not in e.name]
        beside = [entry for entry in beside if entry.name not in (FILE, claims.FOLDER)]
        if beside and not file.is_file():
            raise UserError(
                f"--out {self.path}: not empty and not a run folder; choose another --out."
            )
        if alone:
            self.lock = lock(self.path)
            for partial in self.path.rglob(".*.partial-*"):  # of a process that was killed
                partial.unlink(missing_ok=True)
        if file.is_file() and {entry.name for entry in beside} <= EMPTY:
            for name in EMPTY:
                (self.path / name).unlink(missing_ok=True)
        if file.is_file():
            known = flatten(defaults) | flatten(settings(self.path))
            differing = [
                f"  {key}: {old!r} there, {new!r} now"
                for key, old, new in differences(known, config)
                if key not in free
            ]
            if differing:
                raise UserError(
                    f"--out {self.path}: holds a run of another configuration:\n"
                    + "\n".join(differing)
                    + "\nChoose another --out, or give the same flags to go on with that run."
                )
        write_text(file, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    @property
    def memory(self) -> Path:
        """File that keeps how much goes through each model at once; see `nacd.model.microbatch`."""
        return self.path / "memory.json"
