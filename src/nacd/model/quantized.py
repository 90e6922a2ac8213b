"""Frozen weights in 4 bits (NF4, as in QLoRA, arXiv 2305.14314), by bitsandbytes.

Matrices of the layers take half a byte a weight, and are turned to `--dtype` one at a time as they
are multiplied; embeddings, the head, norms and LoRA are as without it. A product is an ordinary one
of the format that it is made in, not of bitsandbytes' own kernels: in float32 a finite difference
is as exact as it is elsewhere, and a double backward keeps no long matrix.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from nacd.config import ModelConfig
from nacd.errors import UserError
from nacd.model.products import is_quantized, multiplied_in
from nacd.store.extras import require

BYTES = 0.5 + 1 / 64 + 4 / 64 / 256
"""Of a weight: four bits, a byte for every 64 and a number for every 256 of those."""


def loading(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told so that it quantises; nothing without --quantize.

    Raises:
        UserError: bitsandbytes is not installed, or cannot do it with these flags.
    """
    if config.quantize == "none":
        return {}
    require("bitsandbytes", "--quantize 4bit", "leave it out")
    if device.type == "mps" or config.dtype == "float64":
        said = "--device mps" if device.type == "mps" else "--dtype float64"
        raise UserError(f"--quantize 4bit {said}: bitsandbytes cannot do that; drop one of them.")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": how, "device_map": {"": device}}


def own_products(hf: Any, dtype: torch.dtype) -> None:
    """Let matrices that are kept in 4 bits be multiplied in `dtype`.

    Raises:
        UserError: there are none.
    """
    matrices = [module for module in hf.modules() if is_quantized(module)]
    for module in matrices:
        module.forward = multiplied_in(module, dtype)


def stored_bytes(hf: Any) -> float:
    """What the frozen weights of a model without numbers would take in 4 bits."""
    head = hf.get_output_embeddings()
    matrices = [m.weight for m in hf.modules() if type(m) is nn.Linear and m is not head]
    small = {id(w) for w in matrices if not w.requires_grad}
    return math.fsum(
        p.numel() * (BYTES if id(p) in small else p.element_size())
        for p in hf.parameters()
        if not p.requires_grad
    )
