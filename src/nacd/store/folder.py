"""A run folder as its readers see it: whatever files there are, none of them required but one.

Folders of older versions, and of runs that have not ended, lack some: what is absent is None or
empty. Nothing here needs a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacd.errors import UserError
from nacd.store.files import read_json, read_json_lines
from nacd.store.run import settings


@dataclass(frozen=True)
class Run:
    """The files of one distillation."""

    path: Path
    config: Mapping[str, Any]
    """`run.yaml`."""
    provenance: Mapping[str, Any]
    """Versions, hashes of the splits, the day it began."""
    results: Mapping[str, Any] | None
    """`results.json`; None: the run has not ended."""
    cells: Mapping[str, list[dict[str, Any]]]
    """The table's trainings by method, in the order of their seeds."""
    metrics: list[dict[str, Any]]
    """A line an outer step."""
    tuning: Mapping[str, Any] | None
    doctor: Mapping[str, Any] | None
    dataset: list[dict[str, Any]]
    """The exported rows."""
    rows: list[dict[str, Any]]
    """Exported rows beside their starting rows (`distill/rows.jsonl`); empty in older folders."""
    learned: Mapping[str, Any] | None
    overlap: Mapping[str, Any] | None
    stages: Mapping[str, Any] | None
    experts: list[dict[str, Any]]
    """Manifests of the expert trajectories."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of `run.yaml` by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @property
    def state(self) -> str:
        """How far the run has come, in a few words."""
        if self.results is not None:
            return "done"
        if self.cells:
            return f"measuring, {sum(map(len, self.cells.values()))} done"
        if self.metrics:
            done, total = self.metrics[-1]["outer_step"], self.setting("outer.outer_steps")
            return f"learning {done}/{total}"
        if self.experts:
            return "recording experts"
        return "begun"


def is_run(path: Path) -> bool:
    """Whether a folder is a distillation's."""
    return {"outer", "budget"} <= settings(path).keys()


def is_comparison(path: Path) -> bool:
    """Whether a folder is a comparison's."""
    return {"methods", "budgets"} <= settings(path).keys()


def is_check(path: Path) -> bool:
    """Whether a folder is that of `nacd check`."""
    return {"budget", "minutes"} <= settings(path).keys()


def read_check(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Settings and results (None: not ended yet) of a check's folder.

    Raises:
        UserError: a file in it that cannot be read; it is named.
    """
    return settings(path), _json(path / "results.json")


def is_selection(path: Path) -> bool:
    """Whether a folder is that of rows chosen by `nacd select`."""
    keys = settings(path).keys()
    return {"method", "budget", "selection"} <= keys and "outer" not in keys


def read_selection(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Settings and results (None: not chosen yet) of a selection's folder.

    Raises:
        UserError: a file in it that cannot be read; it is named.
    """
    return settings(path), _json(path / "results.json")


@dataclass(frozen=True)
class Comparison:
    """The files of one comparison."""

    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    results: Mapping[str, Any] | None
    """`results.json`, written from the first row on."""
    cells: int
    """Trainings that are done."""

    @property
    def state(self) -> str:
        """How far it has come, in a few words."""
        if self.results is None:
            return f"comparing, {self.cells} done"
        counted = self.results.get("trainings", {"done": 0, "of": 0})
        if counted["done"] < counted["of"]:
            return f"comparing, {counted['done']} of {counted['of']} done"
        return "compared"


def read_comparison(path: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        UserError: a file in it that cannot be read; it is named.
    """
    return Comparison(
        path,
        settings(path),
        _json(path / "provenance.json") or {},
        _json(path / "results.json"),
        sum(1 for _ in path.glob("cells/*/*/*/*/result.json")),
    )


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: no run folder, or a file in it that cannot be read; it is named.
    """
    if not (path / "run.yaml").is_file():
        raise UserError(
            f"{path}: no run folder (no run.yaml in it); give the --out of a `nacd distill`."
        )
    if not is_run(path):
        raise UserError(
            f"{path / 'run.yaml'}: not the settings of a distillation; give the --out of a "
            "`nacd distill`."
        )
    cells: dict[str, list[dict[str, Any]]] = {}
    found = [_json(file) for file in (path / "ladder").glob("*.json")]
    for cell in sorted(filter(None, found), key=lambda cell: cell["seed"]):
        cells.setdefault(cell["method"], []).append(cell)
    manifests = sorted(
        path.glob("experts/*/manifest.json"), key=lambda m: (len(m.parent.name), m.parent.name)
    )
    return Run(
        path=path,
        config=settings(path),
        provenance=_json(path / "provenance.json") or {},
        results=_json(path / "results.json"),
        cells=cells,
        metrics=read_json_lines(path / "distill" / "metrics.jsonl"),
        tuning=_json(path / "tuning.json"),
        doctor=_json(path / "doctor.json"),
        dataset=read_json_lines(path / "dataset" / "train.jsonl"),
        rows=read_json_lines(path / "distill" / "rows.jsonl"),
        learned=_json(path / "distill" / "learned.json"),
        overlap=_json(path / "distill" / "overlap.json"),
        stages=_json(path / "stages.json"),
        experts=[manifest for manifest in map(_json, manifests) if manifest],
    )


def _json(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.is_file() else None
