"""What a model expects to come next, at every token of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from nacd.data.batches import Batch, collate
from nacd.data.example import Encoded
from nacd.data.soft_labels import Expected
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
