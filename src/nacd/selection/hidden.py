"""Rows as vectors: what the model's last layer says of them, averaged over the row's tokens.

With h_1 .. h_L the last hidden states (those that the vocabulary head receives) of all L tokens,

    mean        (1 / L) sum_i h_i
    weighted    sum_i (i / (1 + 2 + .. + L)) h_i       (RDS+, Ivison et al., arXiv 2503.01807)

of the model as it is (LoRA at zero). No graph and no logits: memory is that of a forward pass.
Every few thousand rows are one file in the task's folder, so that a stopped pass goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nacd.data import Batch, Encoded, collate, length_buckets
from nacd.errors import UserError
from nacd.model.lora import LoraModel
from nacd.selection.method import Task, forward_flops
from nacd.store.cache import Cache
from nacd.store.processes import spread
from nacd.terminal.progress import Tick

Pooling = Literal["mean", "weighted"]

SHARD = 4096
"""Rows a file."""
BATCH = 16
"""Rows a forward pass."""


@torch.no_grad()
def last_hidden(model: LoraModel, batch: Batch) -> Tensor:
    """What the vocabulary head would receive at every token, (B, T, d); LoRA stays as it is."""

    def run(parts: list[Batch]) -> Tensor:
        rows = []
        for part in parts:
            laid, told = model.lay_out(part)
            inputs = model.inputs(laid, None)
            with model.products():
                hidden = model.hf.base_model(
                    inputs_embeds=inputs, use_cache=False, **told
                ).last_hidden_state
            where = part.attention.bool().to(hidden.device)
            tokens = hidden[0] if "position_ids" in told else hidden[where]
            rows += tokens.split(where.sum(1).tolist())
        return pad_sequence(rows, batch_first=True)

    return model.in_parts(batch, run, backward=0)


def pool(hidden: Tensor, attention: Tensor, pooling: Pooling) -> Tensor:
    """A weighted mean over each row's tokens.

    Args:
        hidden: (B, T, d).
        attention: (B, T), 1 at a token, 0 at padding (on the right).
        pooling: `mean`: all tokens alike; `weighted`: token i (from 1) weighs i.

    Returns:
        (B, d) float32.
    """
    weights = attention.float()
    if pooling == "weighted":
        weights = weights * torch.arange(1, weights.shape[1] + 1, device=weights.device)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("bt,btd->bd", weights, hidden.float())


def hidden_states(task: Task, name: Literal["train", "target"], pooling: Pooling) -> np.ndarray:
    """One vector a row of a part, computed once and kept in the task's folder.

    Args:
        task: its model's LoRA is overwritten with zeros.
        name: which part.
        pooling: how a row's tokens are averaged.

    Returns:
        (n, d) float32.

    Raises:
        UserError: hidden states that are not finite, a kept file that is damaged, or a full disk.
    """
    rows = getattr(task.prepared, name).rows
    model = task.prepared.model
    model.write(model.zero_theta())

    with task.progress.stage(f"hidden states ({name})", len(rows)) as tick:

        def shard(start: int) -> Tensor:
            part = rows[start : start + SHARD]
            found = Cache(task.folder).tensors(
                f"hidden-{name}-{pooling}-{start}",
                lambda: {"vectors": _computed(model, part, pooling, tick, start)},
                of=_made_with(part, model),
                lately=("model",),
                anew=True,
            )
            tick(start + len(part), float("nan"))
            return found["vectors"]

        return torch.cat([*spread(range(0, len(rows), SHARD), shard)]).numpy()


def hidden_flops(task: Task, *names: Literal["train", "target"]) -> float:
    """Operations of `hidden_states` of these parts: forward passes without the vocabulary head."""
    model = task.prepared.model
    tokens = sum(len(row) for name in names for row in getattr(task.prepared, name).rows)
    head = model.hf.get_output_embeddings().weight.numel()
    return forward_flops(model, tokens) - 2.0 * tokens * head


def _computed(
    model: LoraModel, rows: Sequence[Encoded], pooling: Pooling, tick: Tick, before: int
) -> Tensor:
    parts, where = [], []
    for bucket in length_buckets(rows, BATCH, seed=None):
        batch = collate([rows[i] for i in bucket], model.tokenizer.pad_token_id)
        hidden = last_hidden(model, batch)
        parts.append(pool(hidden, batch.attention.to(hidden.device), pooling).cpu())
        if not bool(torch.isfinite(parts[-1]).all()):
            raise UserError(
                f"--dtype {model.config.dtype}: the hidden states of some rows are not finite; "
                "give --dtype float32."
            )
        where += bucket
        tick(before + len(where), float("nan"))
    return torch.cat(parts)[torch.tensor(where).argsort()]


def _made_with(rows: Sequence[Encoded], model: LoraModel) -> dict[str, str]:
    rows_of = hashlib.sha256(repr([row.ids for row in rows]).encode()).hexdigest()
    return {"rows": rows_of, "model": f"{model.config.model} {model.config.dtype}"}
