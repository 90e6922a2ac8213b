"""A run folder: its configuration, its stages' results, and going on where it stopped.

`run.yaml` holds the resolved configuration (it replays the run), `provenance` beside it the
versions and the data's hash. A folder made with another configuration is refused, the differing
keys named. Metrics are JSON lines; on going on, lines past the saved state are cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nacd.errors import UserError
from nacd.store import claims, processes
from nacd.store.alone import FILE, Lock, lock
from nacd.store.files import SEAL, json_text, read_json, write_json, write_text
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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value there, value now) wherever two configurations differ, by key."""
    old, new = flatten(there), flatten(now)
    keys = sorted(old.keys() | new.keys())
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


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


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.lock: Lock | None = None
        self.shared = False
        """Whether other jobs may be at work in it: what they make just now is waited for."""

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

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until no other job makes `name` in a folder that is shared, and keep them off it."""
        with contextlib.ExitStack() as stack:
            if self.shared:
                processes.first(lambda: stack.enter_context(claims.turn(self.path, name)))
            yield

    def taken(self, name: str) -> bool:
        """Whether another job makes `name` just now."""
        return self.shared and claims.claimed(self.path, name)

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

    def once(
        self,
        name: str,
        make: Callable[[], dict[str, Any]],
        *,
        of: str = "",
        older: str = "",
        stale: Callable[[dict[str, Any]], bool] = lambda kept: False,
    ) -> dict[str, Any]:
        """The JSON result `name`: read it if it is there, else make and keep it.

        Args:
            name: of the file, without its ending.
            make: makes the result; of several processes all call it, and the first one's counts.
            of: a hash of what the result is of, kept with it as `of`: one of something else is
                made anew. Empty, or a file of an older version, which does not say: it is read.
            older: the same hash as an older version wrote it.
            stale: whether a kept result, though of the same, is to be made anew.

        Returns:
            The result as the file has it: lists for tuples, None for what is not a finite number.

        Raises:
            UserError: the file is damaged; it is named.
        """

        def there() -> dict[str, Any] | None:
            kept = self.kept(name)
            same = kept is not None and (not of or kept.get("of", of) in (of, older))
            return kept if kept is not None and same and not stale(kept) else None

        kept = processes.first(there)
        if kept is not None:
            return kept
        with self.turn(name):
            if self.shared and (kept := processes.first(there)) is not None:
                return kept
            made = make() | ({"of": of} if of else {})

            def read() -> dict[str, Any]:
                self.keep(name, made)
                return self.kept(name) or {}

            return processes.first(read)

    def keep(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep a JSON result as `name`.json, with a seal of it and of its name."""
        plain: dict[str, Any] = json.loads(json_text(result))
        write_json(self.path / f"{name}.json", plain | {SEAL: _seal(name, plain)})

    def kept(self, name: str) -> dict[str, Any] | None:
        """The JSON result `name`; None: there is none.

        Raises:
            UserError: the file is damaged, or has taken another's place; it is named.
        """
        file = self.path / f"{name}.json"
        if not file.is_file():
            return None
        found: Any = read_json(file)
        seal = found.pop(SEAL, None) if isinstance(found, dict) else ""
        if seal is not None and seal != _seal(name, found):  # None: an older version's
            raise UserError(
                f"{file}: damaged, or moved here from another place (its content is not what was "
                "written); delete it, and run the same command again to make it anew."
            )
        return found


def _seal(name: str, result: Any) -> str:
    text = json.dumps([name, result], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
