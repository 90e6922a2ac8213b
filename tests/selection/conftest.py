"""Rows that a search can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nacd.config import DataConfig
from nacd.data import Example, Message, Splits
from nacd.model.lora import ModelConfig
from nacd.model.prepare import Prepared, prepare


@pytest.fixture(scope="module")
def prepared(tiny_folder: Callable[[str], Path]) -> Prepared:
    """Every third row answers as the target rows do."""

    def example(number: int, response: str) -> Example:
        words = Message("user", f"what is the colour of the {number}")
        return Example((words, Message("assistant", response)), f"rows:{number}")

    train = [example(i, "the fox" if i % 3 == 0 else "it is") for i in range(48)]
    held = [example(100 + i, "the fox") for i in range(6)]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    return prepare(
        model, DataConfig(data="rows", template="qa"), splits=Splits(train, held, held, held)
    )
