"""What a search's files are of: written down beside them, and held to by who goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nacd.errors import UserError
from nacd.selection.judges import judged_by
from nacd.selection.method import Task
from nacd.store.files import read_json, write_json


def key_of(task: Task, how: str = "") -> dict[str, str]:
    """All that a search by judged trainings depends on: in words, and a hash of the tokens.

    Args:
        task: what is chosen.
        how: what else the search depends on.
    """
    config = task.config
    parts = [
        *(f"rows {task.rows_digest()}", f"budget {task.budget}", f"seed {task.seed}"),
        *(judged_by(task), *([how] if how else [])),
        *(f"filters {config.dedup:g} {config.stratify}", str(task.recipe)),
    ]
    also = [f", also {name}" for name in config.also] + [f" {r:g}" for r in config.also_rates]
    return {"of": ", ".join(parts) + "".join(also), "tokens": task.tokens_digest()}


def hold(file: Path, there: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Hold what a file says that it is of to what is asked for now.

    Args:
        file: the file.
        there: what it says; of an older version, without the hash of the tokens.
        now: as `key_of` makes it.

    Raises:
        UserError: it is of something else.
    """
    if any(there.get(name, now["tokens"]) != value for name, value in now.items()):
        raise UserError(
            f"{file}: made with other settings ({there.get('of', 'not said')}); delete its folder, "
            "or choose another --out."
        )


def claim(task: Task, how: str) -> None:
    """Check that a search's folder is of these rows and settings, or write down that it is.

    Raises:
        UserError: it is of others.
    """
    file, now = task.folder / "search.json", key_of(task, how)
    if file.is_file():
        hold(file, read_json(file), now)
    else:
        write_json(file, now)
