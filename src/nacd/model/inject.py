"""LoRA, put on a transformers model by peft."""

from __future__ import annotations

import warnings
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from nacd.config import ModelConfig
from nacd.errors import UserError
from nacd.model.products import matrix_shape


def _matrices(hf: Any) -> list[Any]:
    """The modules that LoRA goes on."""
    from transformers.pytorch_utils import Conv1D

    return [m for m in hf.modules() if isinstance(m, (nn.Linear, Conv1D))]


def add_lora(hf: Any, config: ModelConfig) -> Any:
    """A transformers model with LoRA on it, as a peft model.

    Raises:
        UserError: no module of that name, LoRA on the embeddings, or a rank above all widths.
    """
    from transformers.pytorch_utils import Conv1D

    if config.lora_rank < 1:
        raise UserError(f"--lora-rank {config.lora_rank}: a rank is at least 1.")
    widest = max((max(matrix_shape(m)) for m in _matrices(hf)), default=config.lora_rank)
    if config.lora_rank > widest:
        raise UserError(
            f"--lora-rank {config.lora_rank}: the widest matrix of {config.model} has {widest:,} "
            "columns, and a rank above that can say nothing more; 8 to 64 are usual."
        )
    targets: Any = list(config.lora_targets)
    if targets == ["all-linear"]:
        targets = "all-linear"
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType] (float works)
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in hf.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft asks for a name that transformers has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            # and misses patterns that it has itself made for parameters, and follows
            warnings.filterwarnings("ignore", r"The following \w+_pattern keys", RuntimeWarning)
            peft = get_peft_model(hf, lora)
    except ValueError as error:
        linear = sorted(
            {n.split(".")[-1] for n, m in hf.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
        )
        raise UserError(
            f"--lora-targets {' '.join(config.lora_targets)}: no such module in "
            f"{config.model}; it has {', '.join(linear)}."
        ) from error
    if any("lora_embedding" in name for name, _ in peft.named_parameters()):
        raise UserError(
            f"--lora-targets {' '.join(config.lora_targets)}: LoRA on token embeddings cannot be "
            "trained here, where models are fed vectors; leave the embedding out."
        )
    return peft


def untrained_experts(peft: Any, config: ModelConfig) -> list[str]:
    """A line for the user where `all-linear` leaves out a mixture's experts.

    transformers keeps the experts of a layer in one matrix of three dimensions, which is no linear
    module; peft knows which matrices these are for some architectures only.
    """
    if config.lora_targets != ("all-linear",):
        return []
    trained = {id(m.get_param()) for m in peft.modules() if isinstance(m, ParamWrapper)}
    parts = {n: p for n, p in peft.named_parameters() if not p.requires_grad}
    left = [p for n, p in parts.items() if p.ndim == 3 and "expert" in n and id(p) not in trained]
    if not left:
        return []
    share = sum(p.numel() for p in left) / sum(p.numel() for p in parts.values())
    return [
        f"--lora-targets all-linear: the experts of {config.model} ({share:.0%} of its weights) "
        "get no LoRA, as they are not linear modules in transformers; only what is beside them is "
        "trained"
    ]
