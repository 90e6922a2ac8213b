"""Rows in any known shape, to one `Example`, to token ids, to batches."""

from nacd.data.batches import Batch, bucketed, collate, epoch_order, length_buckets, training_order
from nacd.data.choices import Answers
from nacd.data.encoding import Dropped, encode_all
from nacd.data.example import Encoded, Example, Message
from nacd.data.exemplars import mmlu_exemplars
from nacd.data.hub import hub_license
from nacd.data.making import make_template
from nacd.data.read import read_examples
from nacd.data.rendering import RAW_TEMPLATES
from nacd.data.split import Splits, split_by_hash, split_heldout
from nacd.data.stored import EncodedRows, Examples
from nacd.data.template import Template
from nacd.data.written import Written

__all__ = [
    "RAW_TEMPLATES",
    "Answers",
    "Batch",
    "Dropped",
    "Encoded",
    "EncodedRows",
    "Example",
    "Examples",
    "Message",
    "Splits",
    "Template",
    "Written",
    "bucketed",
    "collate",
    "encode_all",
    "epoch_order",
    "hub_license",
    "length_buckets",
    "make_template",
    "mmlu_exemplars",
    "read_examples",
    "split_by_hash",
    "split_heldout",
    "training_order",
]
