"""16-bit products whose sums stay in float32.

LoRA adds little to what a frozen matrix makes of its input, and what a 16-bit matrix makes is a
16-bit number: where LoRA's part is below half of its last place, the sum rounded to 16 bits is the
frozen part again, and neither the loss nor its gradient sees what has been trained. So matrices are
multiplied in 16 bits, by autocast, and what LoRA layers and the residual stream add up is float32.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = (torch.bfloat16, torch.float16)
"""Formats of 16 bits."""


def keep_sums(peft: nn.Module) -> None:
    """Let a peft model's LoRA layers add, and its layer norms work, in float32 under autocast."""

    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        casts = torch.is_autocast_enabled(output.device.type)
        return output.float() if casts and output.dtype in SHORT else output

    for module in peft.modules():
        if isinstance(module, Linear):
            module.base_layer.register_forward_hook(hook)
        elif isinstance(module, nn.LayerNorm):
            module.forward = partial(_normalised, module)  # pyright: ignore[reportAttributeAccessIssue]


def _normalised(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """As the module's own forward pass, which the CPU refuses where x and weight differ."""
    weight, bias = module.weight, module.bias
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
        weight, bias = (None if part is None else part.to(x) for part in (weight, bias))
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def short_products(device: torch.device, dtype: torch.dtype | None) -> Any:
    """A context in which matrices are multiplied in `dtype`; None: in their own."""
    if dtype is None:
        return contextlib.nullcontext()
    # a cast of LoRA's matrices is used once, and one kept without gradient would lack it later
    return torch.autocast(device.type, dtype, cache_enabled=False)
