"""A model's shapes without its numbers: built of `config.json` on torch's meta device.

`nacd.costs.costs` and `nacd.model.microbatch` reckon with it as with a loaded model: it has the
same matrices, LoRA's among them, and autograd keeps the same tensors of its layers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from nacd.config import ModelConfig
from nacd.errors import UserError
from nacd.model import checkpoints
from nacd.model.files import said
from nacd.model.functional import DTYPES
from nacd.model.inject import add_lora
from nacd.model.microbatch import needed_bytes
from nacd.model.parts import MICRO_TOKENS, MICRO_TOKENS_DEVICE
from nacd.model.pretrained import read_config
from nacd.model.quantized import stored_bytes

MIXED = 0.8
"""What a pass of a 16-bit model takes, of what is counted here, where autocast does not run:
measured 0.69 to 0.85 on SmolLM2 (`benchmarks/plan.py`)."""


class Outline:
    """A model with LoRA of which nothing is loaded.

    Attributes:
        hf: the transformers model, its matrices without storage.
        config: the configuration that it was made from.
        size: P, the length of theta.
        width: d, the width of `inputs_embeds`.
        parameters: of the frozen weights.
        weights: bytes of the frozen weights.
        largest: numbers of the largest matrix of them.
        usual: positions that go through it at once where memory is no matter.
    """

    def __init__(self, config: ModelConfig, *, card: bool):
        self.config = config
        settings = read_config(checkpoints.locate(config.model), config.model)
        try:
            with torch.device("meta"):
                self.hf: Any = built(settings, config)
                add_lora(self.hf, config)
            self.hf.eval()
            self.width = self.hf.get_input_embeddings().embedding_dim
            self._layers = {k: self._kept(k) for k in (16, 32, 48)}
        except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise UserError(
                f"--model {config.model}: its shapes cannot be laid out without its weights "
                f"({said(error)}); `nacd doctor` measures a step of it instead."
            ) from error
        theirs = [p for p in self.hf.parameters() if p.requires_grad]
        frozen = [p for p in self.hf.parameters() if not p.requires_grad]
        self.size = sum(p.numel() for p in theirs)
        self.parameters = sum(p.numel() for p in frozen)
        self.weights = sum(p.numel() * p.element_size() for p in frozen)
        self.largest = max(p.numel() for p in frozen)
        if config.quantize == "4bit":
            self.weights = round(stored_bytes(self.hf))
        self.usual = config.micro_tokens or (MICRO_TOKENS_DEVICE if card else MICRO_TOKENS)

    def zero_theta(self) -> Tensor:
        """Theta's shape, (P,)."""
        dtype = torch.float32 if self.config.low else DTYPES[self.config.dtype]
        return torch.empty(self.size, dtype=dtype, device="meta")

    def needed(self, positions: int, *, training: bool = True) -> float:
        """Bytes that a pass over so many positions takes beside the weights."""
        text = self.hf.config.get_text_config()
        counted = needed_bytes(
            self._layers.__getitem__,
            vocabulary=self.hf.get_output_embeddings().weight.shape[0],
            entry=max(4, self.zero_theta().element_size()),
            layers=text.num_hidden_layers,
            width=self.width,
            checkpointing=self.config.gradient_checkpointing,
            training=training,
        )(positions)
        return MIXED * counted if self.config.low else counted

    def _kept(self, positions: int) -> int:
        """Bytes that autograd keeps of one row's layers, weights left out."""
        weights = {p.untyped_storage()._cdata for p in self.hf.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                seen[storage._cdata] = storage.nbytes()
            return tensor

        dtype = DTYPES[self.config.dtype]
        with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            graph = self.hf.base_model(
                inputs_embeds=torch.empty(1, positions, self.width, dtype=dtype),
                attention_mask=torch.zeros(1, 1, positions, positions, dtype=torch.bool),
                position_ids=torch.empty(1, positions, dtype=torch.long),
                use_cache=False,
            )
            del graph
        text = self.hf.config.get_text_config()
        square = text.num_hidden_layers * text.num_attention_heads * positions**2
        if self.config.attention == "eager":
            square = 0  # it is kept indeed
        return sum(seen.values()) - square * dtype.itemsize


def built(settings: Any, config: ModelConfig) -> Any:
    """The transformers model of a configuration, on the device that is torch's default then."""
    from transformers import AutoModelForCausalLM

    kernel = "eager" if config.attention == "eager" else "sdpa"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(
            settings, dtype=DTYPES[config.dtype], attn_implementation=kernel
        )
