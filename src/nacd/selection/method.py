"""What a selection method is given, and what it gives back.

A method is a function `Task -> Ranking`. Most are a representation of the rows (hidden states,
words, gradient features) and a selector over it; `nacd.selection.METHODS` names them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nacd.config import SelectionConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded
from nacd.data.stored import digests
from nacd.terminal.progress import Progress

if TYPE_CHECKING:  # PyTorch takes seconds: flags are checked without it
    from nacd.model.lora import LoraModel
    from nacd.model.prepare import Prepared


@dataclass(frozen=True)
class Task:
    """What a method may look at."""

    prepared: Prepared
    """Model, template, training rows (chosen from) and target rows; the held-out rows stay unread.

    The model's LoRA may be overwritten.
    """
    recipe: Recipe
    """The training that the chosen rows are for."""
    config: SelectionConfig
    seed: int
    folder: Path
    """For intermediates, so that a method killed half-way goes on; its own, made by the method."""
    progress: Progress
    budget: str = "5%"
    """What will be chosen, for methods that depend on it; see `nacd.config.parse_budget`."""

    def trained_row(self, index: int) -> Encoded:
        """A training row as chosen rows are trained on: the last turn its only label."""
        return self.prepared.template.as_exported(self.prepared.train.examples[index])

    def rows_digest(self) -> str:
        """Of the training and target rows, to tell intermediates of other rows apart."""
        digest = hashlib.sha256()
        for part in (self.prepared.train, self.prepared.target):
            for one in digests(part.examples):
                digest.update(one.encode())
        return digest.hexdigest()[:12]

    def tokens_digest(self) -> str:
        """Of the model's description and of all ids and labels, for the same purpose."""
        from nacd.experts.store import describe_model, describe_rows

        parts = (self.prepared.train, self.prepared.target)
        rows = [describe_rows(part.rows, ())["tokens"] for part in parts]
        text = json.dumps([describe_model(self.prepared.model), rows])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Ranking:
    """A method's verdict on all n training rows."""

    order: Iterable[int]
    """Row indices, best first, each at most once; may be lazy, and is read as far as needed."""
    scores: np.ndarray | None = None
    """(n,) float64: what the order comes from, higher is better; None where there is no such."""
    flops: float = 0.0
    """Floating-point operations spent on the model, see `forward_flops`."""
    filtered: bool = False
    """Whether the order has been through the task's filters already."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """What the method measured of its choice, in words, by a label."""


class Method(Protocol):
    """Ranks the training rows of a task."""

    def __call__(self, task: Task) -> Ranking:
        """The ranking; raises `UserError` where the task lacks what the method needs."""
        ...


def forward_flops(model: LoraModel, tokens: float) -> float:
    """Operations of a forward pass over `tokens` tokens: two a parameter and token.

    A gradient in LoRA's parameters (or in inputs) costs as much again: the frozen weights take
    activation gradients, and no gradients of their own (Kaplan et al., arXiv 2001.08361, without
    the third of the backward pass that LoRA saves).
    """
    from nacd.model.products import count

    table = model.hf.get_input_embeddings().weight.numel()
    tied = model.hf.get_output_embeddings().weight is model.hf.get_input_embeddings().weight
    return 2.0 * tokens * (count(model.hf.parameters()) - (0 if tied else table))
