"""What a model expects to come next, at every token of a row, and the file of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from nacd.data.batches import Batch, collate
from nacd.data.example import Encoded, Example
from nacd.data.soft_labels import Expected, vocabulary_digest, write_soft_labels
from nacd.data.template import Template
from nacd.model.lora import LoraModel


@torch.no_grad()
def expectations(
    model: LoraModel,
    rows: Sequence[Encoded],
    top: int,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Expected]:
    """The likeliest next tokens at every token of every row, by the LoRA that the model holds.

    Args:
        model: the teacher.
        rows: n rows.
        top: k, how many tokens are kept at each place; less where the vocabulary is smaller.
        tick: told how many rows are done.

    Raises:
        OutOfMemory: a row does not fit.
    """
    top = min(top, model.vocabulary)

    def run(parts: list[Batch]) -> Expected:
        (part,) = parts  # a row alone
        part = part.to(model.device)
        with model.products():
            logits = model.hf(
                inputs_embeds=model.inputs(part, None),
                attention_mask=part.attention,
                use_cache=False,
            ).logits[0]
        likely = logits[:, : model.vocabulary].float().log_softmax(-1).topk(top)
        return Expected(likely.indices.cpu().numpy().astype(np.int32), likely.values.cpu().numpy())

    found = []
    for done, row in enumerate(rows, 1):
        batch = collate([row], model.tokenizer.pad_token_id)
        found.append(model.in_parts(batch, run, backward=0))
        tick(done)
    return found


def write_labels(
    path: Path,
    model: LoraModel,
    template: Template,
    rows: Sequence[Encoded],
    examples: Sequence[Example],
    expected: Sequence[Expected],
    adapter: str,
) -> None:
    """Write what a teacher expects, as one file; of chat rows, with their turns.

    Args:
        path: a .parquet file.
        model: the teacher's, and its students' tokenizer.
        template: how the rows are written.
        rows: n rows.
        examples: what they were encoded from.
        expected: what the teacher expects in each.
        adapter: the folder of the teacher's LoRA, for who reads the file; may be empty.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    turns = [[{"role": m.role, "content": m.content} for m in e.messages] for e in examples]
    about = {
        "vocabulary": vocabulary_digest(model.tokenizer),
        "model": model.config.model,
        "adapter": adapter,
    }
    messages = turns if template.text is None else None
    write_soft_labels(path, rows, expected, messages=messages, about=about)
