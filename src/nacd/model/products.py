"""Linear modules whose matrix is kept short, and made for one product at a time.

A graph keeps the short matrix and not the one that is multiplied with, forward or backward.
Products are linear in x, so the gradient of one is one more, and so is a gradient of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def is_quantized(module: nn.Module) -> bool:
    """Whether a module's matrix is kept in 4 bits."""
    # peft's wrapper shows its module's weight as its own, and is no nn.Linear
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")


def matrix_shape(module: Any) -> tuple[int, ...]:
    """The shape of a linear module's matrix, in 4 bits or not."""
    return tuple(module.weight.quant_state.shape if is_quantized(module) else module.weight.shape)


def count(parameters: Iterable[Any]) -> int:
    """How many numbers parameters are, those in 4 bits among them, of which two are in a byte."""
    states = ((p, getattr(p, "quant_state", None)) for p in parameters)
    return sum(p.numel() if state is None else math.prod(state.shape) for p, state in states)


def multiplied_in(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The forward pass of a linear module with a frozen matrix, multiplied in `dtype`."""
    bias = module.bias
    across = isinstance(module, nn.Linear)  # a Conv1D's weight is (in, out)

    def wide() -> Tensor:
        if is_quantized(module):
            from bitsandbytes.functional import dequantize_4bit

            return dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)
        return module.weight.detach().to(dtype)

    def forward(x: Tensor) -> Tensor:
        y: Any = _Product.apply(x.to(dtype), wide, across)
        return y if bias is None else y + bias.to(dtype)

    return forward


class _Product(torch.autograd.Function):
    """x W, or x W^T, where W is made for the product and forgotten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wide: Callable[[], Tensor], across: bool) -> Tensor:
        ctx.wide, ctx.across = wide, across
        return x @ (wide().T if across else wide())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Product.apply(grads[0], ctx.wide, not ctx.across), None, None
