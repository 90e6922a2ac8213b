"""What a run hands out: the text data set with its card, and the soft prompts."""

from nacd.export.card import Card, render_card
from nacd.export.dataset import DatasetRow, write_dataset
from nacd.export.soft import SoftPrompts, read_soft_prompts, write_soft_prompts

__all__ = [
    "Card",
    "DatasetRow",
    "SoftPrompts",
    "read_soft_prompts",
    "render_card",
    "write_dataset",
    "write_soft_prompts",
]
