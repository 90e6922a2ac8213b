"""`nacd label`: a teacher's soft labels of some rows, as one file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nacd.commands.target import read
from nacd.config.commands import LabelConfig
from nacd.config.settings import check_values
from nacd.data import encode_all, make_template
from nacd.errors import UserError
from nacd.model.lora import check_ids, load_model
from nacd.model.microbatch import settle
from nacd.model.teacher import expectations, write_labels
from nacd.terminal.progress import Progress
from nacd.training.evaluation import response_nll


@dataclass(frozen=True)
class Labelled:
    """What `label` wrote."""

    file: Path
    """`soft_labels.parquet`, for `nacd train --soft-labels`."""
    rows: int
    response_tokens: int
    """Label tokens of all rows together."""
    nll: float
    """The teacher's response NLL on these rows, in nats per token."""
    kept: float
    """The share of the teacher's probability that the kept tokens have, over response tokens."""


def label(config: LabelConfig, progress: Progress | None = None) -> Labelled:
    """Write what a teacher expects at every token of the rows of --data.

    Raises:
        UserError: a wrong input.
    """
    progress = progress or Progress(quiet=True)
    check_values(config)
    if config.top < 1:
        raise UserError(f"--top {config.top}: at least 1 token is kept at each place.")
    examples = read(config.data)
    model = load_model(config.model, config.adapter)
    for note in model.notes:
        progress.say(note)
    template = make_template(config.data.template, model.tokenizer, examples)
    rows, kept, dropped = encode_all(template, examples, config.data.max_tokens)
    check_ids(model, rows, kept)
    if dropped.message:
        progress.say(dropped.message)
    settle(model, max(len(row) for row in rows), training=False, say=progress.say)
    theta = model.zero_theta()
    nll = response_nll(model, theta, rows)
    model.write(theta)
    with progress.stage("label", len(rows)) as tick:
        found = expectations(model, rows, config.top, lambda done: tick(done, math.nan))
    file = config.out / "soft_labels.parquet"
    adapter = "" if config.adapter is None else str(config.adapter)
    write_labels(file, model, template, rows, kept, found, adapter)
    shares = [
        np.exp(one.logs[np.flatnonzero(row.response[1:])]).sum(-1)
        for row, one in zip(rows, found, strict=True)
    ]
    share = float(np.concatenate(shares).mean())
    return Labelled(file, len(rows), int(nll.tokens.sum()), nll.mean, share)
