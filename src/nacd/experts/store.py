"""The snapshot store: one expert is one folder, every file in it whole or absent.

    step-00012.safetensors   `theta` (P,) and the optimiser's state, `state.0` (P,), ...
    order.json               the rows' digests, and the row indices of every step's batch
    manifest.json            what the expert was made with, its LoRA matrices, and its snapshots:
                             step, file, SHA-256, the losses since the one before, held-out loss

The manifest is written last and holds the SHA-256 of all others: a file it does not name does not
count. What it says about the making (`made_with`) decides whether a run may go on in the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.errors import UserError
from nacd.model.files import inside
from nacd.model.lora import LoraModel
from nacd.store.files import read_tensors, sha256_of, write_json, write_tensors, write_text
from nacd.training.inner import Start

MANIFEST = "manifest.json"
ORDER = "order.json"
FORMAT = 1
_FLAGS = {
    "tokens": "--template",
    "rows": "--data",
    "every": "--snapshot-every",
    "optimizer": "--expert-optimizer",
    "learning_rate": "--expert-rate",
    "epochs": "--expert-epochs",
    "steps": "--expert-steps",
    "batch_size": "--expert-batch",
    "momentum": "--expert-momentum",
}
"""Flags that are not called as the key is."""
_DERIVED = {
    "total": "number of steps",
    "order": "row indices of the steps",
    "theta": "LoRA matrices",
}
"""What follows from the rest: named only if nothing else differs."""


@dataclass(frozen=True)
class Snapshot:
    """One snapshot's line in the manifest."""

    step: int
    """Optimiser steps taken."""
    file: str
    sha256: str
    losses: tuple[float, ...]
    """Mean response NLL of the batch of every step since the snapshot before."""
    held_out: float | None = None
    """Held-out loss here, if it was asked for."""


@dataclass(frozen=True)
class Expert:
    """A recorded trajectory: theta and the optimiser's state at some steps of one training."""

    folder: Path
    recipe: Recipe
    seed: int | None
    """Of LoRA's first values and of the rows' order; None: imported."""
    total: int
    """Steps of the whole training, over which its schedule runs."""
    order: list[list[int]]
    """Row indices of every step's batch; empty: imported."""
    digests: list[str]
    """Digest of every row, to which `order` points; empty: imported."""
    snapshots: tuple[Snapshot, ...]
    state: str
    """`recorded`, or `zeros` where an imported run had no readable moments (see `snapshot`)."""

    @property
    def steps(self) -> list[int]:
        """Steps that have a snapshot, ascending."""
        return [snapshot.step for snapshot in self.snapshots]

    @property
    def losses(self) -> list[float]:
        """Mean response NLL of every recorded step's batch."""
        return [loss for snapshot in self.snapshots for loss in snapshot.losses]

    @property
    def held_out(self) -> dict[int, float]:
        """Held-out loss at the steps where it was taken."""
        return {s.step: s.held_out for s in self.snapshots if s.held_out is not None}

    def snapshot(self, step: int, device: torch.device | str = "cpu") -> Start:
        """Theta (P,), the optimiser's state and the step count after `step` steps.

        Note that with `state` `zeros` the moments are zeros although `count` is `step`: AdamW's
        bias correction then counts steps that the moments never saw, and its first steps come out
        about three times too long. Warm the state, or match with SGD.

        Args:
            step: one of `steps`.
            device: where the tensors go.

        Raises:
            UserError: the file is damaged or gone; it is named.
            ValueError: no snapshot at that step.
        """
        for snapshot in self.snapshots:
            if snapshot.step == step:
                return _read_snapshot(self.folder, snapshot, device)
        raise ValueError(f"{self.folder}: no snapshot at step {step}; there are {self.steps}")


def open_expert(folder: Path) -> Expert:
    """Open a recorded or imported expert; snapshots are read, and verified, one by one.

    Raises:
        UserError: no expert there, or a damaged manifest or order; it is named.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: no {MANIFEST} there; record an expert with `nacd experts`.")
    made_with = manifest["made_with"]
    order: dict[str, Any] = {"rows": [], "steps": []}
    if "order" in made_with:
        text = _read_order(folder)
        if text is None or _sha256(text.encode()) != made_with["order"]:
            raise UserError(
                f"{folder / ORDER}: damaged or gone; run the same command again to re-make it."
            )
        order = json.loads(text)
    return Expert(
        folder=folder,
        recipe=Recipe(**made_with["recipe"]),
        seed=made_with.get("seed"),
        total=made_with["total"],
        order=order["steps"],
        digests=order["rows"],
        snapshots=_snapshots(manifest),
        state=manifest["state"],
    )


def describe_model(model: LoraModel) -> dict[str, Any]:
    """What of a model must agree for its theta (P,) to mean the same: names, number format, LoRA.

    Device and attention kernel are left out: they change no more than the rounding.
    """
    config = model.config
    return {
        "model": config.model,
        "dtype": config.dtype,
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_targets": list(config.lora_targets),
        "theta": {name: list(shape) for name, shape in zip(model.names, model.shapes, strict=True)},
    }


def describe_rows(rows: Sequence[Encoded], digests: Sequence[str]) -> dict[str, Any]:
    """Hashes of the rows, in their order: of their texts (`data`) and of token ids and labels."""
    tokens = hashlib.sha256()
    for row in rows:
        tokens.update(json.dumps([row.ids, [int(r) for r in row.response]]).encode())
    return {
        "rows": len(rows),
        "data": _sha256("\n".join(digests).encode()),
        "tokens": tokens.hexdigest(),
    }


class Writer:
    """Writes an expert's folder, and goes on in one that was begun.

    Attributes:
        snapshots: what the folder holds, as far as it is whole.
    """

    def __init__(
        self,
        folder: Path,
        made_with: Mapping[str, Any],
        *,
        state: str = "recorded",
        order: tuple[Sequence[str], Sequence[Sequence[int]]] | None = None,
    ):
        """Open `folder`; snapshots from the first damaged one on are forgotten.

        Args:
            folder: made if needed.
            made_with: what the expert is made with; the folder's must be equal.
            state: `recorded` or `zeros`, as in `Expert`.
            order: the rows' digests, and the row indices of every step.

        Raises:
            UserError: the folder was made with something else (every differing key is named, with
                both values), or its manifest is damaged.
        """
        self.folder = folder
        self.state = state
        self.made_with: dict[str, Any] = dict(made_with)
        text = None
        if order is not None:
            text = json.dumps({"rows": list(order[0]), "steps": [list(s) for s in order[1]]}) + "\n"
            self.made_with["order"] = _sha256(text.encode())
        self.made_with = json.loads(json.dumps(self.made_with))  # as it reads back
        manifest = _read_manifest(folder)
        self.snapshots: list[Snapshot] = []
        if manifest is not None:
            self._refuse_other(manifest["made_with"], order)
            self.snapshots = self._whole(_snapshots(manifest))
        for partial in folder.glob(".*.partial-*"):  # of a process that was killed
            partial.unlink(missing_ok=True)
        if text is not None and _read_order(folder) != text:
            write_text(folder / ORDER, text)
        if manifest is None or len(self.snapshots) < len(manifest["snapshots"]):
            self._write_manifest()

    def last(self) -> Start | None:
        """The last whole snapshot, on the CPU; None: there is none."""
        return _read_snapshot(self.folder, self.snapshots[-1]) if self.snapshots else None

    def add(self, start: Start, losses: Iterable[float], held_out: float | None = None) -> None:
        """Write a snapshot, then the manifest that names it.

        Raises:
            UserError: the disk is full or the folder cannot be written; what was there is whole.
        """
        path = self.folder / f"step-{start.count:05d}.safetensors"
        tensors = {"theta": start.theta}
        tensors |= {f"state.{i}": part for i, part in enumerate(start.state)}
        write_tensors(path, tensors, {"step": str(start.count)})
        digest = _file_sha256(path)
        if digest is None:
            raise UserError(f"{path}: gone as soon as it was written; is {self.folder} in use?")
        self.snapshots.append(Snapshot(start.count, path.name, digest, tuple(losses), held_out))
        self._write_manifest()

    def _write_manifest(self) -> None:
        write_json(
            self.folder / MANIFEST,
            {
                "format": FORMAT,
                "state": self.state,
                "made_with": self.made_with,
                "snapshots": [asdict(snapshot) for snapshot in self.snapshots],
            },
        )

    def _whole(self, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
        """The snapshots before the first damaged one."""
        kept: list[Snapshot] = []
        for snapshot in snapshots:
            if _file_sha256(self.folder / snapshot.file) != snapshot.sha256:
                break
            kept.append(snapshot)
        return kept

    def _refuse_other(
        self,
        there: Mapping[str, Any],
        order: tuple[Sequence[str], Sequence[Sequence[int]]] | None,
    ) -> None:
        differing = _differences(there, self.made_with)
        if not differing:
            return
        lines = [f"{name} {a} there, {b} here" for name, a, b in differing]
        stored = _read_order(self.folder)
        if order is not None and stored is not None and "--data" in [d[0] for d in differing]:
            with contextlib.suppress(json.JSONDecodeError, KeyError):
                rows = json.loads(stored)["rows"]
                if sorted(rows) == sorted(order[0]):
                    lines = ["--data has the same rows there and here, but in another order"]
        raise UserError(
            f"{self.folder}: this expert was made with another configuration ("
            + "; ".join(lines)
            + "). Give the same values to go on, or another --out to begin anew."
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The differing keys as flags, each with both values."""
    flat_there = {k: v for k, v in there.items() if k != "recipe"} | dict(there.get("recipe", {}))
    flat_here = {k: v for k, v in here.items() if k != "recipe"} | dict(here.get("recipe", {}))
    keys = [
        key for key in flat_here | flat_there if flat_there.get(key, "") != flat_here.get(key, "")
    ]
    chosen = [key for key in keys if key not in _DERIVED] or keys
    if "rows" in chosen or "data" in chosen:  # other rows have other tokens, too
        chosen = [key for key in chosen if key not in ("data", "tokens")] + ["data"]
    return [
        (
            _DERIVED.get(key) or _FLAGS.get(key) or "--" + key.replace("_", "-"),
            _short(key, flat_there.get(key)),
            _short(key, flat_here.get(key)),
        )
        for key in dict.fromkeys(chosen)
        if not (key == "data" and "rows" in chosen)
    ]


def _short(key: str, value: Any) -> str:
    if key == "rows":
        return f"of {value} rows"
    if key == "theta" and isinstance(value, dict):
        return f"{len(value)} ({_sha256(json.dumps(value).encode())[:8]})"
    if key in ("data", "tokens", "order") and isinstance(value, str):
        return f"of hash {value[:8]}"
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    return "not given" if value is None else str(value)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path}: format {manifest['format']}, but this version reads {FORMAT}; give "
                "another --out."
            )
        _snapshots(manifest)
        Recipe(**manifest["made_with"]["recipe"])
        _ = manifest["state"], manifest["made_with"]["total"]
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}); delete the folder {folder} and "
            "run the same command again."
        ) from error


def _snapshots(manifest: Mapping[str, Any]) -> tuple[Snapshot, ...]:
    return tuple(
        Snapshot(**(entry | {"file": inside(entry["file"]), "losses": tuple(entry["losses"])}))
        for entry in manifest["snapshots"]
    )


def _read_order(folder: Path) -> str | None:
    try:
        return (folder / ORDER).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _read_snapshot(folder: Path, snapshot: Snapshot, device: torch.device | str = "cpu") -> Start:
    path = folder / snapshot.file
    found = _file_sha256(path)
    if found != snapshot.sha256:
        what = "gone" if found is None else "damaged (its SHA-256 is not the manifest's)"
        raise UserError(f"{path}: {what}; run the same command again to re-make it.")
    tensors, _ = read_tensors(path)
    state = tuple(tensors[f"state.{i}"].to(device) for i in range(len(tensors) - 1))
    return Start(tensors["theta"].to(device), state, snapshot.step)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_sha256(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None
