"""The rows that a check recommends, as data sets with their cards, recipe and soft labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nacd.checking.outcome import Outcome
from nacd.checking.verdict import Verdict
from nacd.config.commands import LabelConfig
from nacd.data import hub_license
from nacd.export import LORA, Card, shared_name
from nacd.export.card import table as markdown
from nacd.export.chosen import write_chosen
from nacd.model.split_files import said_on_card
from nacd.model.teacher import expectations, write_labels
from nacd.selection import METHODS
from nacd.training.finetune import save_adapter

FOLDERS = ("dataset", "dataset-at-budget")
"""The rows recommended; the best known rows of the budget, where those are others."""
LABELS = "labels"
"""The teacher, and its soft labels of the budget's rows."""


def write_recommended(
    outcome: Outcome, verdict: Verdict, said: str, table: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Write the folders of rows; one that is no longer recommended is removed.

    Args:
        outcome: the check.
        verdict: what it says.
        said: the same in words, for the card.
        table: of all sets, for the card.

    Returns:
        For every folder that was written: `rows`, `tokens`, who chose them (`by`), and the tokens
        of all training rows (`of_tokens`).
    """
    budget = outcome.trainings.state.sizes.budget
    wanted = dict(zip(FOLDERS, dict.fromkeys((verdict.rows, budget)), strict=False))
    if not verdict.rows:
        wanted = {}
    place = outcome.trainings.folder.path
    for name in set(FOLDERS) - wanted.keys():
        shutil.rmtree(place / name, ignore_errors=True)
    measured = f"{said}\n\n{markdown(_shown(table))}"
    return {
        name: _write_one(outcome, name, rows, verdict.method, measured)
        for name, rows in wanted.items()
    }


def write_taught(outcome: Outcome, verdict: Verdict) -> Path | None:
    """Write the teacher and its labels of the budget's rows, where students gain by them.

    Returns:
        The file of labels; None: there is none.
    """
    own, sizes = outcome.trainings, outcome.trainings.state.sizes
    folder = own.folder.path / LABELS
    if not verdict.taught:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    prepared, theta = own.prepared, own.teacher()
    indices = _rows(outcome, verdict.method, sizes.budget)
    examples = [prepared.train.examples[i] for i in indices]
    rows = [prepared.template.as_exported(example) for example in examples]
    adapter = save_adapter(prepared.model, theta, folder / "teacher")
    prepared.model.write(theta)
    expected = expectations(prepared.model, rows, LabelConfig.top)
    file = folder / "soft_labels.parquet"
    write_labels(file, prepared.model, prepared.template, rows, examples, expected, str(adapter))
    return file


def _rows(outcome: Outcome, method: str, rows: int) -> list[int]:
    """Indices of the rows that are recommended, so many of them.

    Where no choice is better: of the draws of the budget, the one best on validation rows.
    """
    own, state = outcome.trainings, outcome.trainings.state
    if rows != state.sizes.budget:
        return own.rows("random", rows)
    return own.rows(method, rows, state.best_draw() or 0)


def _write_one(
    outcome: Outcome, name: str, rows: int, method: str, measured: str
) -> dict[str, Any]:
    own, state = outcome.trainings, outcome.trainings.state
    by = method if rows == state.sizes.budget else "random"
    indices = _rows(outcome, method, rows)
    if rows == state.sizes.total:
        by, indices = "nacd check", sorted(indices)
    config, prepared = own.config, own.prepared
    about = METHODS[by].about if by in METHODS else "all training rows"
    provenance = (own.folder.path / "provenance.json").read_text(encoding="utf-8")
    card = Card(
        data=shared_name(config.data.data),
        data_rows=len(prepared.train),
        model=shared_name(config.model.model),
        template=prepared.template.describe(),
        recipe=replace(own.recipe, epochs=own.passes("random", rows)),
        projection="none",
        lora={key: getattr(config.model, key) for key in LORA},
        max_tokens=config.data.max_tokens,
        settings={
            "method": about,
            "budget": config.budget,
            "seed": config.seed,
            "recipe": "as given" if outcome.tuned is None else outcome.tuned.describe(),
            **said_on_card(prepared),
        },
        title="Instruction data recommended by nacd check",
        license=config.data.license or hub_license(config.data.data),
        language=config.data.language,
        provenance=json.loads(provenance),
    )
    write_chosen(
        own.folder.path / name,
        [prepared.train.examples[i] for i in indices],
        prepared.template,
        card,
        by,
        config.model,
        in_order=by not in METHODS or METHODS[by].orders,
        seed=config.seed,
        measured=measured,
    )
    return {
        "rows": len(indices),
        "tokens": sum(len(prepared.train.rows[i]) for i in indices),
        "by": by,
        "of_tokens": sum(len(row) for row in prepared.train.rows),
    }


def _shown(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table's columns that a card shows."""
    shown = []
    for row in table:
        against = row["minus_random"]
        text = "" if against is None else f"{against['mean']:+.3f}"
        if against is not None and against["low"] is not None:
            text += f" ({against['low']:+.3f} to {against['high']:+.3f})"
        shown.append(
            {
                "trained on": row["name"],
                "test NLL per token": f"{row['nll']:.3f}",
                "minus random rows of the budget": text,
                "passes": f"{row['passes']:g}",
                "trainings": row["trainings"],
            }
        )
    return shown
