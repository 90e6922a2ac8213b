"""From flags to a model, a template and the four encoded splits that every stage works on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nacd.config import DataConfig
from nacd.data import (
    Encoded,
    Example,
    Examples,
    Splits,
    Template,
    encode_all,
    make_template,
    read_examples,
    split_by_hash,
    split_heldout,
)
from nacd.data.split import SPOKEN
from nacd.data.stored import digests, lengths
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig, check_ids, load_model
from nacd.model.microbatch import settle
from nacd.model.unloaded import without_weights

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One split: the same rows as text and as ids."""

    examples: Sequence[Example]
    rows: Sequence[Encoded]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)


@dataclass(frozen=True)
class Prepared:
    """A loaded model and the rows as it sees them."""

    model: LoraModel
    template: Template
    train: Part
    target: Part
    development: Part
    report: Part

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        names = ("train", "target", "development", "report")
        return {name: len(getattr(self, name)) for name in names}


def read_splits(config: DataConfig, *, target: bool = True, held_out: bool = True) -> Splits:
    """Read the data and split it by hash, or take the files that --target and --heldout name.

    Args:
        config: which data.
        target: whether rows of --data are set aside as target rows, where --target names none.
        held_out: the same of validation and test rows and --heldout.
    """
    columns = config.mapping() or None

    def read(data: str, flag: str, group: str = "", split: str = "train") -> Examples:
        return read_examples(
            data,
            choice_form=config.choices,
            answers=config.answers,
            columns=columns,
            ignore_columns=config.ignore_columns,
            group=group,
            split=split,
            flag=flag,
        )

    examples = read(config.data, "--data", config.group_column)
    held = None
    if config.heldout:
        held = split_heldout(read(config.heldout, "--heldout", split="validation"))
    splits = split_by_hash(
        examples,
        target=config.target_rows if target and not config.target else 0,
        **({} if held_out and held is None else {"development": 0, "report": 0}),
    )
    if held is not None:
        splits = replace(splits, development=held[0], report=held[1])
    if config.target:
        splits = replace(splits, target=read(config.target, "--target", config.group_column))
    return splits


def prepare(
    model_config: ModelConfig,
    data_config: DataConfig,
    say: Say = lambda line: None,
    splits: Splits | None = None,
    memory: Path | None = None,
    may_lack: Collection[str] = (),
    *,
    weights: bool = True,
) -> Prepared:
    """Read and split the data, load the model, encode the rows, see what fits in the memory.

    Args:
        model_config: which model.
        data_config: which data, and how it is read.
        say: takes lines for the user (dropped rows, weights left out).
        splits: rows already in hand, instead of those that `data_config` names.
        memory: file of the run folder that keeps how much goes through the model at once.
        may_lack: parts that nothing will look at, and that may be empty.
        weights: whether anything will pass through the model; else its weights are not read.

    Raises:
        UserError: whatever is wrong with the data or the model; data is read first.
    """
    splits = read_splits(data_config) if splits is None else splits
    model: Any = load_model(model_config) if weights else without_weights(model_config)
    for note in model.notes:
        say(note)
    template = make_template(data_config.template, model.tokenizer, splits.train)
    parts = {}
    flags = {"target": data_config.target and "--target"}
    flags |= dict.fromkeys(("development", "report"), data_config.heldout and "--heldout")
    for name in ("train", "target", "development", "report"):
        examples, flag = getattr(splits, name), flags.get(name) or "--data"
        if not examples:
            if name in may_lack or (name == "target" and data_config.target_rows == 0):
                parts[name] = Part((), ())
                continue
            raise UserError(f"no {SPOKEN[name]} rows are left; give a longer {flag} file.")
        rows, kept, dropped = encode_all(template, examples, data_config.max_tokens, flag)
        check_ids(model, rows, kept)
        if dropped.message:
            say(f"{SPOKEN[name]}: {dropped.message}")
        parts[name] = Part(kept, rows)
    for line in copies(parts):
        say(line)
    if weights:
        longest = max(int(lengths(part.rows).max(initial=0)) for part in parts.values())
        settle(model, longest, kept=memory, say=say)
    return Prepared(model, template, **parts)


def copies(parts: Mapping[str, Part]) -> list[str]:
    """A line for the user wherever rows that are looked at stand among those that are held out.

    Parts of one file share no row; files of --target and --heldout may.
    """
    lines = []
    for held in ("development", "report"):
        known = {*digests(parts[held].examples)}
        for name in ("train", "target"):
            if not known:
                continue
            if count := sum(digest in known for digest in digests(parts[name].examples)):
                of = len(parts[name].examples)
                lines.append(
                    f"{count} of {of} {SPOKEN[name]} rows are {SPOKEN[held]} rows "
                    f"too, word for word: figures on {SPOKEN[held]} rows may be too good."
                )
    return lines
