"""The data set card: what the rows are and are not, how to train with them, what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from huggingface_hub import DatasetCardData

from nacd.recipe import Recipe

CITATION = """\
@article{nacd2025,
  title  = {Neighbor-Aware Corpus Distillation},
  eprint = {2504.09818},
  archivePrefix = {arXiv},
  url    = {https://arxiv.org/abs/2504.09818}
}"""


@dataclass(frozen=True)
class Card:
    """What the card of a data set says beside the rows themselves."""

    data: str
    """The data that was distilled, by the name the user gave it."""
    data_rows: int
    """Training rows in it."""
    model: str
    """The model that the prompts were learned on."""
    template: Mapping[str, str]
    """As `Template.describe`."""
    recipe: Recipe
    """The training that the rows were learned for."""
    projection: str
    """How vectors became tokens: `nearest`, `straight-through`, `simplex`, or `none`."""
    results: Sequence[Mapping[str, Any]] | None = None
    """Rows of the results table, each with the same keys; None: not measured."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other settings of the run, by name (objective, engine, outer steps, seed, ...)."""
    title: str = "Distilled instruction data"
    license: str | None = None
    """The hub's name for the licence of the data distilled; the rows carry it on."""


def render_card(card: Card, tokens_changed: Sequence[float], *, chat: bool) -> str:
    """The text of `README.md`, with the header that the hub and `load_dataset` read.

    Args:
        card: what to say.
        tokens_changed: of every row, the share of learnable tokens changed.
        chat: whether the rows are messages rather than text.
    """
    rows = len(tokens_changed)
    changed = sum(tokens_changed) / rows
    header = DatasetCardData(
        license=card.license,
        task_categories=["text-generation"],
        size_categories=[_size(rows)],
        tags=["dataset-distillation", "instruction-tuning", "synthetic", "nacd"],
        pretty_name=card.title,
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "train.jsonl"}],
            }
        ],
    ).to_yaml()
    if changed == 0:
        what = (
            f"**These rows are the seeds.** No token of any prompt was changed: the {rows} rows "
            f"stand in {card.data} as they are here. Whatever they do, choosing them did it."
        )
    else:
        what = (
            f"{rows} rows, each grown from one of the {card.data_rows} training rows of "
            f"{card.data}: the response is the seed row's own, the prompt's tokens were learned. "
            f"{changed:.1%} of the learnable tokens differ from the seed's on average "
            f"({min(tokens_changed):.1%} to {max(tokens_changed):.1%} a row; "
            f"{sum(share == 0 for share in tokens_changed)} rows are unchanged)."
        )
    form = (
        "`prompt` and `completion` are lists of messages (`role`, `content`)"
        if chat
        else "`prompt` and `completion` are strings, to be joined as they are"
    )
    return f"""---
{header}
---

# {card.title}

{what}

## What the rows are not

- Not to be read as instructions: a learned prompt is optimised to train a model, and may be
  ungrammatical, false or meaningless. Nobody has checked the text.
- Not anonymous: the responses, and what is left of the prompts, are the source data's own, with
  its licence, its mistakes and its personal data.
- Not bound to help another training: they were learned for the recipe below.

## Columns

{form}. Train on the completion alone (TRL does so for these two columns).

| column | meaning |
|---|---|
| `prompt` | what is learned |
| `completion` | the seed row's response |
| `seed_row` | where the seed row stands |
| `seed_digest` | SHA-256 of the seed row's messages |
| `tokens_changed` | share of the prompt's learnable tokens that differ from the seed's |

`train.parquet` holds the same rows as `train.jsonl`.

## The recipe to train with

    nacd train --model {card.model} --data train.jsonl {_flags(card.recipe)}

{_table([{"field": f"`{k}`", "value": v} for k, v in asdict(card.recipe).items()])}

On these {rows} rows: {card.recipe.total_steps(rows)} steps. LoRA; the loss is taken over the
completion alone; dropout is off.

## How they were made

{_table(_made(card))}

## Results

{_table(list(card.results)) if card.results else "Not measured."}

## Citation

The method follows Neighbor-Aware Corpus Distillation (arXiv 2504.09818), of which this is an
independent reconstruction.

```bibtex
{CITATION}
```
"""


def _flags(recipe: Recipe) -> str:
    """The recipe as flags, where it differs from the defaults."""
    plain = asdict(Recipe())
    return " ".join(
        f"--{name.replace('_', '-')} {value:g}"
        if isinstance(value, float)
        else f"--{name.replace('_', '-')} {value}"
        for name, value in asdict(recipe).items()
        if value != plain[name]
    )


def _made(card: Card) -> list[dict[str, Any]]:
    made: dict[str, Any] = {
        "source data": card.data,
        "its training rows": card.data_rows,
        "model": card.model,
        "template": json.dumps(dict(card.template), ensure_ascii=False),
        "projection": card.projection,
        **card.settings,
        "made by": f"nacd {version('nacd')}",
    }
    return [{"setting": name, "value": value} for name, value in made.items()]


def _size(rows: int) -> str:
    if rows < 1000:
        return "n<1K"
    for low, high, upper in (("1K", "10K", 10**4), ("10K", "100K", 10**5), ("100K", "1M", 10**6)):
        if rows < upper:
            return f"{low}<n<{high}"
    return "1M<n<10M"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows that share their keys."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        names,
        ["---"] * len(names),
        *([_cell(row.get(name)) for name in names] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value).replace("|", "\\|").replace("\n", " ")
