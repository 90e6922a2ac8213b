"""What choosing rows by their words asks of a model: its tokenizer and its sizes, no weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nacd.config import ModelConfig
from nacd.model import checkpoints
from nacd.model.inject import add_lora
from nacd.model.outline import built
from nacd.model.pretrained import check_vocabulary, load_tokenizer, read_config


@dataclass(frozen=True)
class Unloaded:
    """A model of which no weight has been read."""

    config: ModelConfig
    tokenizer: Any
    vocabulary: int
    """Ids that the model has both an embedding and a logit for."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""


def without_weights(config: ModelConfig) -> Unloaded:
    """A model's tokenizer, held against the sizes that its configuration states.

    Raises:
        UserError: as `nacd.model.lora.load_model`, but for what the weights alone tell.
    """
    folder = checkpoints.locate(config.model)
    settings = read_config(folder, config.model)
    tokenizer = load_tokenizer(folder, config.model)
    with torch.device("meta"):
        model = built(settings, config)
        vocabulary = check_vocabulary(tokenizer, model, config.model)
        add_lora(model, config)  # what trains on the chosen rows is held to the same
    return Unloaded(config, tokenizer, vocabulary)
