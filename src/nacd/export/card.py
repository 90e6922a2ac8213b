"""What a data set card says of any rows of ours: header, licence, columns, origin, citation.

`learned_card` and `chosen_card` write whole cards (`README.md`) of these parts. The header is read
by the hub and by `datasets.load_dataset`, which takes from it that `train.parquet` alone is data,
and that other rows are another configuration.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import yaml
from huggingface_hub import DatasetCardData

from nacd.config.model import PACKAGED
from nacd.config.recipe import Recipe
from nacd.export.dataset import DatasetRow, rows_name
from nacd.export.readers import read_otherwise


@dataclass(frozen=True)
class Card:
    """What the card of a data set says beside the rows themselves."""

    data: str
    """The data that was distilled or chosen from, by the name the user gave it."""
    data_rows: int
    """Training rows in it."""
    model: str
    """The model that the rows were learned or chosen with."""
    template: Mapping[str, str]
    """As `Template.describe`."""
    recipe: Recipe
    """The training that the rows are for."""
    projection: str
    """How vectors became tokens: `nearest`, `straight-through`, `simplex`, or `none`."""
    results: Sequence[Mapping[str, Any]] | None = None
    """Rows of the results table, each with the same keys; None: not measured."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    """The settings named in `LORA`, of the training that the rows are for."""
    max_tokens: int = 512
    """Longest row that was taken."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other settings of the run, by name (objective, engine, outer steps, seed, ...)."""
    title: str = "Distilled instruction data"
    license: str = ""
    """The hub's name for the licence of the source data; the rows carry it on. Empty: unknown."""
    language: str = ""
    """The hub's codes of the languages, between commas (`en`, `en, de`). Empty: not said."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The run's `provenance.json`: `versions`, the `data` hashes of each split, `began`."""


def front_matter(card: Card, rows: Sequence[DatasetRow], tags: Sequence[str]) -> str:
    """The YAML header between its two lines of dashes.

    Its one configuration is the one that `load_dataset` reads where none is named.

    Args:
        card: what to say.
        rows: the rows of the data set.
        tags: how the hub finds it.
    """
    languages = [code.strip() for code in card.language.split(",") if code.strip()]
    header = DatasetCardData(
        language=languages or None,
        license=card.license or None,
        task_categories=["text-generation"],
        size_categories=[_size(len(rows))],
        tags=[*tags, "instruction-tuning", "nacd"],
        pretty_name=card.title,
        configs=[
            {
                "config_name": rows_name(rows),
                "data_files": [{"split": "train", "path": "train.parquet"}],
            }
        ],
    ).to_yaml()
    return f"---\n{header}\n---"


def code(text: str) -> str:
    """A text as a code span of Markdown, on one line, whatever stands in it."""
    shown = visible(text) or " "
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    edges = {shown[0], shown[-1]}
    space = " " if shown.strip() and edges & {"`", " "} else ""
    return f"{fence}{space}{shown}{space}{fence}"


def visible(text: str) -> str:
    """A text on one line: what cannot be printed is written as its escape (`\\n`)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def license_section(license: str) -> str:
    """The card's section on the licence, with a warning where it is unknown."""
    if license:
        said = f"{code(license)}, as the source data: its responses stand in these rows."
        return f"## Licence\n\n{said}"
    return (
        "## Licence\n\n"
        "**Unknown.** The responses, and what is left of the prompts, are the source data's own, "
        "so its licence\nholds for these rows too; nobody has said which it is. Find out before "
        "you share or use them, and\nname it (`--license`)."
    )


def header_of(text: str) -> dict[str, Any]:
    """What a card's header says; empty where it has none.

    Raises:
        yaml.YAMLError: the header is no YAML.
    """
    parts = _parts(text)
    said = yaml.safe_load(parts[0]) if parts else None
    return said if isinstance(said, dict) else {}


def with_license(text: str, license: str) -> str:
    """A card's text with another licence in its header and in its section."""
    _, body = _parts(text) or ("", f"\n{text}")
    header = yaml.safe_dump(
        {"license": license} | {k: v for k, v in header_of(text).items() if k != "license"},
        sort_keys=False,
        allow_unicode=True,
    )
    section = re.compile(r"^## Licence\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    body = section.sub(lambda _: license_section(license) + "\n\n", body)
    return f"---\n{header}---\n{body}"


def _parts(text: str) -> tuple[str, str] | None:
    """A card's header, without its lines of dashes, and what comes after it."""
    before, *parts = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    return (parts[0], parts[1]) if not before and len(parts) == 2 else None


def columns_section(*, chat: bool, prompt: str, completion: str, changed: str) -> str:
    """The card's section on columns; the last three say what is in a column."""
    form = (
        "`prompt` and `completion` are lists of messages (`role`, `content`)"
        if chat
        else "`prompt` and `completion` are strings, to be joined as they are"
    )
    about = {
        "prompt": prompt,
        "completion": completion,
        "seed_row": "where the row stands in the source data",
        "seed_digest": "SHA-256 of that row's messages",
        "tokens_changed": changed,
    }
    return f"""## Columns

{form}. Train on the completion alone (TRL does so for these two columns).

{table([{"column": f"`{name}`", "meaning": text} for name, text in about.items()])}

`datasets.load_dataset` reads `train.parquet`; `train.jsonl` holds the same rows, one a line. What
it has read it keeps under the configuration's name in this file's header: whoever changes rows
changes that name too."""


def trainers_section(rows: Sequence[DatasetRow]) -> str:
    """The card's section on `train_with/`, see `nacd.export.trainers`."""
    otherwise = [f"- {line}" for lines in read_otherwise(rows).values() for line in lines]
    return "\n".join([_TRAINERS, *([""] if otherwise else []), *otherwise])


_TRAINERS = """## Train with

With the recipe's own values, from this folder (name your model as the flag, or in the file):

    nacd train --model YOURS --data train.jsonl
    trl sft --config train_with/trl.yaml
    axolotl train train_with/axolotl.yaml
    llamafactory-cli train train_with/llamafactory.yaml

`nacd train` takes order and recipe from `train_with/nacd.yaml`, and flags go over it. Each other
file says at its head where that trainer cannot do quite the same."""


def made_table(card: Card) -> str:
    """How the rows were made, setting by setting, and with what."""
    made: dict[str, Any] = {
        "source data": code(card.data),
        "its training rows": card.data_rows,
        "model": code(card.model) + _copy(card.model),
        "template": code(json.dumps(dict(card.template), ensure_ascii=False)),
        **({} if card.projection == "none" else {"projection": card.projection}),
        **card.settings,
        **{f"{part} data": said for part, said in card.provenance.get("data", {}).items()},
        **({"begun": card.provenance["began"]} if "began" in card.provenance else {}),
    }
    versions = card.provenance.get("versions", {"nacd": version("nacd")})
    made["made with"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return table([{"setting": name, "value": value} for name, value in made.items()])


def _copy(model: str) -> str:
    return " (a 4-bit copy: GGUF, dequantised)" if model in PACKAGED else ""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
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
    return " ".join(str(value).splitlines()).replace("|", "\\|")


def _size(rows: int) -> str:
    if rows < 1000:
        return "n<1K"
    for low, high, upper in (("1K", "10K", 10**4), ("10K", "100K", 10**5), ("100K", "1M", 10**6)):
        if rows < upper:
            return f"{low}<n<{high}"
    return "1M<n<10M"
