"""`nacd select`: real rows of a data set, chosen by a method, as a data set of their own.

Same splits, same budget and same form of rows as `nacd distill`, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nacd.config import DataConfig, DistillConfig, SelectionConfig, with_judge
from nacd.data import Example, Splits, Template, hub_license
from nacd.export import (
    Card,
    DatasetRow,
    read_otherwise,
    render_chosen_card,
    shared_name,
    write_dataset,
    write_trainers,
)
from nacd.export.card import code
from nacd.files import read_json, write_json
from nacd.learn import draw
from nacd.models import ModelConfig
from nacd.prepare import Prepared, Say, prepare, read_splits
from nacd.progress import Progress
from nacd.recipe import Recipe
from nacd.selection import METHODS, Task, check_method, check_rows, choose_once
from nacd.stages import open_run


@dataclass(frozen=True)
class SelectConfig:
    """`nacd select`: choose real rows of a data file."""

    out: Path = Path("runs/select")
    """Run folder; the same command again goes on where it stopped."""
    method: str = "rds+"
    """`random`, `best-of`, `longest`, `kcenter`, `bm25`, `rds+`, `less` or `trajectory`."""
    budget: str = "5%"
    """What is chosen: rows (`112`), a percentage (`5%`) or tokens (`20000t`)."""
    seed: int = 0
    """Seed of everything that is drawn."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            UserError: an unknown method, or a flag's value out of range; it is named.
        """
        check_method(self.method, self.selection)
        shared = {name: getattr(self, name) for name in ("budget", "model", "data", "recipe")}
        DistillConfig(**shared).check()


@dataclass(frozen=True)
class Selected:
    """What `select` chose."""

    folder: Path
    """The run folder."""
    dataset: Path
    """`dataset/`, which `datasets.load_dataset` reads."""
    method: str
    rows: tuple[int, ...]
    """Indices among the training rows, best first."""
    tokens: int
    """Tokens of the chosen rows."""
    of: int
    """Training rows that were chosen from."""
    seconds: float
    """Seconds that choosing took, loading the model aside."""
    flops: float
    """Floating-point operations spent on the model, see `nacd.selection.forward_flops`."""

    @property
    def summary(self) -> str:
        """The outcome in one plain sentence."""
        return (
            f"{self.method} chose {len(self.rows)} of {self.of} training rows ({self.tokens} "
            f"tokens) in {self.seconds:.1f} s and {self.flops:.2g} FLOPs."
        )


def select(
    config: SelectConfig, *, splits: Splits | None = None, progress: Progress | None = None
) -> Selected:
    """Choose training rows and write them as a data set.

    Args:
        config: everything that may be set.
        splits: rows already in hand, instead of those that the configuration names.
        progress: display.

    Raises:
        UserError: a wrong input; nothing already made is lost.
    """
    progress = progress or Progress()
    config.check()
    splits = read_splits(config.data) if splits is None else splits
    check_rows(config.method, config.selection, splits.train, splits.target)
    folder = open_run(config, splits, free=("out",))
    prepared = prepare(config.model, config.data, progress.say, splits, folder.memory)
    config.recipe.check_rows(len(draw(prepared.train, config.budget, config.seed)))
    task = Task(
        prepared,
        config.recipe,
        with_judge(config.selection, config.data),
        config.seed,
        folder.path / "selection",
        progress,
        config.budget,
    )
    chosen = choose_once(folder, "chosen", task, config.method)
    rows = tuple(chosen["rows"])
    result = Selected(
        folder.path,
        folder.path / "dataset",
        config.method,
        rows,
        sum(len(prepared.train.rows[i]) for i in rows),
        len(prepared.train),
        chosen["seconds"],
        chosen["flops"],
    )
    _export(config, prepared, result, progress.say)
    write_json(
        folder.path / "results.json",
        {
            "method": config.method,
            "budget": config.budget,
            "rows": [
                {
                    "source": prepared.train.examples[i].source,
                    "digest": prepared.train.examples[i].digest,
                    "tokens": len(prepared.train.rows[i]),
                    "score": score,
                }
                for i, score in zip(rows, chosen["scores"], strict=True)
            ],
            "tokens": result.tokens,
            "seconds": result.seconds,
            "flops": result.flops,
            "sizes": prepared.sizes,
            "template": prepared.template.describe(),
        },
    )
    return result


def _export(config: SelectConfig, prepared: Prepared, result: Selected, say: Say) -> None:
    """Write `dataset/`: the rows as `nacd distill` writes them, and a card of their own."""
    recipe, in_order = config.recipe, METHODS[config.method].orders
    if not in_order:  # best first is no order to train in
        recipe = replace(recipe, shuffle=True)
    card = Card(
        data=shared_name(config.data.data),
        data_rows=result.of,
        model=shared_name(config.model.model),
        template=prepared.template.describe(),
        recipe=recipe,
        projection="none",
        settings=_settings(config, result),
        title=f"Instruction data chosen by {config.method}",
        max_tokens=config.data.max_tokens,
        license=config.data.license or hub_license(config.data.data),
        language=config.data.language,
        provenance=read_json(result.folder / "provenance.json"),
    )
    rows = write_chosen(
        result.dataset,
        [prepared.train.examples[i] for i in result.rows],
        prepared.template,
        card,
        config.method,
        config.model,
        in_order=in_order,
        seed=config.seed,
    )
    for line in chain.from_iterable(read_otherwise(rows).values()):
        say(line)


def write_chosen(
    dataset: Path,
    examples: Sequence[Example],
    template: Template,
    card: Card,
    method: str,
    model: ModelConfig,
    *,
    in_order: bool,
    seed: int,
    measured: str = "",
) -> list[DatasetRow]:
    """Write real rows as a data set folder, with its card and the trainers' files.

    Args:
        dataset: the folder.
        examples: the rows.
        template: how they are written.
        card: what the card says; its recipe is that of the trainers' files.
        method: who chose the rows.
        model: what the trainers' files train.
        in_order: whether the rows' order is that of a draw, rather than best first.
        seed: of the trainers' shuffles.
        measured: what was measured of these rows, as Markdown; empty: nothing.

    Returns:
        The rows as they were written.
    """
    rows = []
    for example in examples:
        row = template.row(example)
        source = shared_name(example.source)
        rows.append(DatasetRow(row["prompt"], row["completion"], source, example.digest, 0))
    text = render_chosen_card(card, method, rows, in_order=in_order, measured=measured)
    write_dataset(dataset, rows, text)
    write_trainers(dataset, rows, card.recipe, model, max_tokens=card.max_tokens, seed=seed)
    return rows


def _settings(config: SelectConfig, result: Selected) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": f"{config.method}: {METHODS[config.method].about}",
        "budget": config.budget,
        "seed": config.seed,
        "seconds to choose": round(result.seconds, 1),
        "FLOPs to choose": f"{result.flops:.3g}",
    }
    if config.selection.dedup:
        settings["near-copies left out from"] = f"Jaccard {config.selection.dedup:g}"
    if config.selection.stratify:
        settings["in proportion by"] = code(config.data.group_column or "group")
    return settings
