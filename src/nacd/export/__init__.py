"""What a run hands out: the text data set with its card and trainers' files, and soft prompts."""

from nacd.export.card import Card
from nacd.export.chosen_card import render_chosen_card
from nacd.export.dataset import DatasetRow, shared_name, write_dataset
from nacd.export.learned_card import render_learned_card
from nacd.export.own_recipe import LORA, own_recipe
from nacd.export.readers import read_otherwise
from nacd.export.soft import SoftPrompts, read_soft_prompts, write_soft_prompts
from nacd.export.trainers import made_in_order, write_trainers

__all__ = [
    "LORA",
    "Card",
    "DatasetRow",
    "SoftPrompts",
    "made_in_order",
    "own_recipe",
    "read_otherwise",
    "read_soft_prompts",
    "render_chosen_card",
    "render_learned_card",
    "shared_name",
    "write_dataset",
    "write_soft_prompts",
    "write_trainers",
]
