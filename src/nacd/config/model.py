"""Which model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PACKAGED = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Models that are read out of Python packages, as 4-bit copies; by name, where the hub has them."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model is loaded, how, and the LoRA that is put on it."""

    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2` (SmolLM2-135M-Instruct out of a Python package)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Number format of the frozen weights; LoRA's are never below float32."""
    quantize: Literal["none", "4bit"] = "none"
    """`4bit`: the layers' frozen matrices in NF4, as in QLoRA, multiplied in `--dtype`; it needs
    bitsandbytes."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation, by its name in transformers."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; `auto` takes CUDA, then MPS, then the CPU."""
    lora_rank: int = 8
    """Rank of the LoRA update."""
    lora_alpha: float = 16.0
    """LoRA's numerator: the update is scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get LoRA (`q_proj v_proj`), or `all-linear`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    shard: bool = False
    """Spread the frozen layers over the processes of a launch, for a model that one device does not
    hold; with --engine first-order or one-sided."""
    micro_tokens: int = 0
    """Most tokens that go through the model at once (a longer row goes alone); the gradient is the
    whole batch's. 0: 384 on the CPU, 2048 elsewhere, less where memory is short."""

    @property
    def low(self) -> bool:
        """Whether the model multiplies in a 16-bit format."""
        return self.dtype in ("bfloat16", "float16")
