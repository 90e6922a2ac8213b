"""The card of learned rows: what they are and are not, how to train on them, what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nacd.config import ModelConfig, ReadConfig
from nacd.config.recipe import Recipe
from nacd.data.rows import prefix_length
from nacd.export.card import (
    Card,
    code,
    columns_section,
    front_matter,
    license_section,
    made_table,
    table,
    trainers_section,
    visible,
)
from nacd.export.dataset import DatasetRow
from nacd.export.trainers import HEADROOM

CITATION = """\
@article{nacd2025,
  title  = {Transferable text data distillation by trajectory matching},
  eprint = {2504.09818},
  archivePrefix = {arXiv},
  url    = {https://arxiv.org/abs/2504.09818}
}"""


def render_learned_card(card: Card, rows: Sequence[DatasetRow]) -> str:
    """The text of `README.md` for rows whose prompts were learned.

    Args:
        card: what to say.
        rows: the rows of the data set, at least one.
    """
    columns = columns_section(
        chat=rows[0].chat,
        prompt="what is learned",
        completion="the starting row's response",
        changed="share of the prompt's learnable tokens that differ from the starting row's",
    )
    return f"""{front_matter(card, rows, ["dataset-distillation", "synthetic"])}

# {card.title}

{_what(card, [row.tokens_changed for row in rows])}

## What the rows are not

- Not to be read as instructions: a learned prompt is optimised to train a model, and may be
  ungrammatical, false or meaningless. Nobody has checked the text.
- Not anonymous: the responses, and what is left of the prompts, are the source data's own, with
  its licence, its mistakes and its personal data.
- Not private: a prompt was learned from what training on it does, and may encode training rows
  other than the one it started as.
- Not bound to help another training: they were learned for the recipe below.

{license_section(card.license)}

{columns}

{trainers_section(rows)}

## The recipe to train with

    nacd train --model {shlex.quote(visible(card.model))} --data train.jsonl {_flags(card)}

{table([{"field": f"`{k}`", "value": _exact(v)} for k, v in asdict(card.recipe).items()])}

On these {len(rows)} rows: {card.recipe.total_steps(len(rows))} steps. LoRA; the loss is taken over
the completion alone; dropout is off.
{_order(card.recipe)}
## How they were made

{made_table(card)}

## Results

{table(list(card.results)) if card.results else "Not measured."}

## Citation

The method follows Neighbor-Aware Corpus Distillation (arXiv 2504.09818), of which this is an
independent reconstruction.

```bibtex
{CITATION}
```
"""


def _what(card: Card, changed: Sequence[float]) -> str:
    if not any(changed):
        return (
            f"**These rows are the starting rows.** No token of any prompt was changed: the "
            f"{len(changed)} rows stand in {code(card.data)} as they are here. Whatever they do, "
            "choosing them did it."
        )
    grown = (
        f"{len(changed)} rows, each grown from one of the {card.data_rows} training rows of "
        f"{code(card.data)}: the response is the starting row's own, "
    )
    unchanged = sum(share == 0 for share in changed)
    length = prefix_length(str(card.settings.get("learnable positions", "prompt")))
    if length:
        tokens = f"{length} learned token{'s' * (length != 1)}"
        return (
            f"{grown}and before its prompt stand {tokens} (in {unchanged} rows they do not: these "
            "are the starting rows as they are)."
        )
    return (
        f"{grown}the prompt's tokens were learned. In a row {sum(changed) / len(changed):.1%} of "
        f"the learnable tokens differ from the starting row's on average ({min(changed):.1%} to "
        f"{max(changed):.1%}; {unchanged} rows are unchanged)."
    )


def _order(recipe: Recipe) -> str:
    if recipe.shuffle:
        return ""
    return (
        "\n**Train on them in the order of the file, without shuffling**: what a prompt was "
        "learned\nfor depends on when it is visited. The configuration files in `train_with/` say "
        "so.\n"
    )


def _flags(card: Card) -> str:
    """Recipe and LoRA as flags, where they differ from the defaults."""
    plain = asdict(Recipe()) | {name: getattr(ModelConfig(), name) for name in card.lora}
    plain["max_tokens"] = ReadConfig().max_tokens
    length = max(plain["max_tokens"], HEADROOM * card.max_tokens)  # another tokenizer's, perhaps
    flags = []
    for name, value in (asdict(card.recipe) | dict(card.lora) | {"max_tokens": length}).items():
        flag = name.replace("_", "-")
        if value == plain[name]:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            flags.append(f"--{flag} {shlex.join(value)}")
        else:
            flags.append(f"--{flag} {_exact(value)}")
    return " ".join(flags)


def _exact(value: Any) -> str:
    """A setting as the files in `train_with/` have it, to the last digit."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
