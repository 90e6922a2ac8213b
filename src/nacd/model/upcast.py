"""A 16-bit or 4-bit model that multiplies in float32 for a while, without a second copy of it.

Its matrices are turned to float32 one at a time (`nacd.model.products`). What is short otherwise
(norms, biases, the experts of a mixture) is turned in place and back, which loses nothing: every
16-bit number is a float32 number. Embeddings stay what the model looks up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nacd.model.functional import LoraModel
from nacd.model.mixed import SHORT
from nacd.model.precision import full_precision
from nacd.model.products import is_quantized, multiplied_in


@contextlib.contextmanager
def in_float32(model: LoraModel) -> Iterator[None]:
    """Inside, losses and gradients of `model` are those of the same weights in float32."""
    with full_precision(model.device), contextlib.ExitStack() as after:
        if model.hf.config._attn_implementation == "flash_attention_2":  # it has no float32
            after.callback(model.hf.set_attn_implementation, "flash_attention_2")
            model.hf.set_attn_implementation("sdpa")
        after.callback(setattr, model, "short", model.short)
        model.short = None
        apart: set[int] = set()
        for module in model.hf.modules():
            if _is_matrix(module):
                apart.add(id(module.weight))
                after.callback(_restore, module, module.__dict__.get("forward"))
                module.forward = multiplied_in(module, torch.float32)
            elif isinstance(module, nn.Embedding) and module.weight.dtype in SHORT:
                apart.add(id(module.weight))
                hook = module.register_forward_hook(lambda _, args, output: output.float())
                after.callback(hook.remove)
        for parameter in model.hf.parameters():
            if parameter.dtype in SHORT and id(parameter) not in apart:
                after.callback(_turn, parameter, parameter.dtype)
                _turn(parameter, torch.float32)
        yield


def _is_matrix(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    short = type(module) in (nn.Linear, Conv1D) and module.weight.dtype in SHORT
    return short or is_quantized(module)


def _restore(module: nn.Module, forward: object) -> None:
    del module.forward
    if forward is not None:
        module.forward = forward  # pyright: ignore[reportAttributeAccessIssue]


def _turn(parameter: Tensor, dtype: torch.dtype) -> None:
    parameter.data = parameter.data.to(dtype)
