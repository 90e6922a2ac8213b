"""Every row's own gradient, for a whole batch in one backward pass.

A LoRA matrix W (o, i) acts as y = x W^T. With a copy W_b for every row b, y_b = x_b W_b^T, the rows
of a batch share nothing that is trained, and the gradient of the sum of their losses in W_b is row
b's own. The frozen weights, which cost the time and the memory traffic, are still multiplied once.
Where the rows pass through the model packed into one sequence, only LoRA's own, thin products are
padded.

Where a LoRA layer does not see the batch's rows (LoRA on the vocabulary head, on experts that
tokens are routed to, or on fused matrices that it changes instead of being called), rows go through
the model one at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nacd.data.batches import Batch
from nacd.model.lora import LoraModel

ROOM = 2**27
"""Most numbers in a batch's gradients (B times P): half a gigabyte in float32."""

RowGradients = Callable[[Tensor, Batch], Tensor]
"""theta (P,) and a batch of B rows to the gradients of their mean response NLLs, (B, P)."""


class _OtherRows(RuntimeError):
    """A LoRA layer's input is not the batch's rows, or the layer was not called."""


@contextlib.contextmanager
def row_gradients(model: LoraModel) -> Iterator[RowGradients]:
    """The function that computes every row's gradient on `model`, whose LoRA it overwrites."""
    modules = dict(model.hf.named_modules())
    layers = [modules[name.removesuffix(".weight")] for name in model.names]
    together = all(isinstance(layer, nn.Linear) for layer in layers)
    weights: list[Tensor] = []
    called: set[int] = set()
    where = tokens = torch.empty(0)
    """Which of a batch's positions (B, T) are tokens; their numbers, row after row, (S,)."""

    def forward(number: int, _: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not weights:
            return None
        called.add(number)
        x, copies = args[0], weights[number].transpose(1, 2)
        rows, longest = where.shape
        if tuple(x.shape[:-1]) in ((rows, longest), (rows * longest,)):
            return torch.bmm(x.reshape(rows, longest, -1), copies).view(output.shape)
        if tuple(x.shape[:-1]) not in ((1, len(tokens)), (len(tokens),)):
            raise _OtherRows
        apart = x.new_zeros(rows * longest, x.shape[-1]).index_copy(0, tokens, x.flatten(0, -2))
        products = torch.bmm(apart.view(rows, longest, -1), copies)
        return products.flatten(0, 1)[tokens].view(output.shape)

    def batched(theta: Tensor, batch: Batch) -> Tensor:
        nonlocal where, tokens
        where = batch.attention.to(model.device)
        tokens = where.flatten().nonzero()[:, 0]
        model.write(theta)
        for part in model.named_theta(theta).values():
            weights.append(part.detach().expand(len(where), *part.shape).clone().requires_grad_())
        try:
            with torch.enable_grad():
                loss = model.row_losses(batch).sum()
                if len(called) < len(layers):
                    raise _OtherRows
                parts = torch.autograd.grad(loss, weights)
        finally:
            weights.clear()
            called.clear()
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def part(theta: Tensor, batch: Batch) -> Tensor:
        nonlocal together
        if together and len(batch.ids) > 1:
            try:
                found = batched(theta, batch)
                # in one sequence, what is not finite reaches other rows: masked, but 0 times NaN
                for b in (~found.isfinite().all(1)).nonzero()[:, 0].tolist():
                    found[b] = batched(theta, batch.row(b))[0]
                return found
            except _OtherRows:
                together = False
        rows = range(len(batch.ids))
        return torch.stack([model.value_and_grad(theta, batch.row(b))[1] for b in rows])

    def compute(theta: Tensor, batch: Batch) -> Tensor:
        return model.in_parts(batch, lambda parts: torch.cat([part(theta, p) for p in parts]))

    hooks = [
        layer.register_forward_hook(partial(forward, number)) for number, layer in enumerate(layers)
    ]
    try:
        yield compute
    finally:
        for hook in hooks:
            hook.remove()
