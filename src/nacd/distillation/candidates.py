"""What learning begins with: the projection at the starting rows' own tokens.

The simplex's candidates of a position are the row's own token, its nearest rows of the embedding
table, and what the model itself expects there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nacd.config import OuterLoopConfig
from nacd.data.rows import Rows
from nacd.distillation.neighbours import candidates
from nacd.distillation.projection import (
    Learner,
    Nearest,
    Simplex,
    StraightThrough,
    simplex_logits,
)
from nacd.errors import UserError
from nacd.model.lora import LoraModel


@torch.no_grad()
def expected_tokens(model: LoraModel, data: Rows, count: int, allowed: Tensor) -> Tensor:
    """The tokens that the model itself expects at every slot, likeliest first, (Q, count)."""
    model.write(model.zero_theta())
    found = []
    for row, slots in zip(data.rows, data.slots, strict=True):
        logits = model.hf(input_ids=torch.tensor([row.ids], device=model.device)).logits[0]
        logits[:, ~allowed.to(model.device)] = -torch.inf
        for position, slot in enumerate(slots):
            if slot >= 0:
                found.append(logits[max(0, position - 1)].topk(count).indices.cpu())
    return torch.stack(found)


def simplex_candidates(
    model: LoraModel, data: Rows, count: int, allowed: Tensor, table: Tensor
) -> Tensor:
    """Candidates (Q, count): the row's own token, neighbours and the model's guesses in turn."""
    starts = data.ids
    near = candidates(table[starts].float(), table, count, allowed).cpu()
    guessed = expected_tokens(model, data, count, allowed)
    rows = []
    for q, own in enumerate(starts.tolist()):
        row = [own]
        for pair in zip(near[q].tolist(), guessed[q].tolist(), strict=True):
            row += [t for t in dict.fromkeys(pair) if t not in row]
        rows.append(row[:count])
    return torch.tensor(rows)


def make_projection(
    model: LoraModel, data: Rows, config: OuterLoopConfig, allowed: Tensor
) -> tuple[Learner, float]:
    """The projection at the starting rows' own tokens, and Adam's learning rate on its parameters.

    Raises:
        UserError: more candidates than there are tokens.
    """
    ids = data.ids
    if config.projection == "simplex":
        if config.candidates > int(allowed.sum()):
            raise UserError(
                f"--candidates {config.candidates}: only {int(allowed.sum())} tokens of this "
                "model's may be chosen (plain text that encodes to itself); give at most as many."
            )
        options = simplex_candidates(model, data, config.candidates, allowed, model.table)
        logits = simplex_logits(options, ids, config.start_share)
        simplex = Simplex(logits, options, model.table, cold=config.cold)
        return simplex, config.step_size or 0.2
    kind = Nearest if config.projection == "nearest" else StraightThrough
    vectors = model.embed(ids).float().clone()
    learned = kind(vectors, model.table, allowed, config.metric, ids)
    return learned, config.step_size or 0.02
