"""A LoRA model from its flags, and back to an adapter that others load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nacd.config import ModelConfig
from nacd.data.example import Encoded, Example
from nacd.data.stored import largest_ids
from nacd.errors import UserError
from nacd.model import adapters, checkpoints, quantized
from nacd.model.functional import DTYPES, LoraModel, twice_differentiable
from nacd.model.pretrained import load_tokenizer, load_weights, read_config
from nacd.model.probe import resolve_device


def check_ids(model: LoraModel, rows: Sequence[Encoded], examples: Sequence[Example]) -> None:
    """Refuse rows with a special token that the model has no embedding for.

    Args:
        model: the model.
        rows: n rows.
        examples: what they were encoded from, in the same order.

    Raises:
        UserError: a row has one; the row and the token are named.
    """
    for number, worst in enumerate(largest_ids(rows)):
        if worst >= model.vocabulary:
            raise UserError(
                f"{examples[number].source}: it holds "
                f"{model.tokenizer.convert_ids_to_tokens(worst)}, a special token with the id "
                f"{worst}, and --model {model.config.model} has "
                f"embeddings for {model.vocabulary} (ids 0 to {model.vocabulary - 1}); take it out "
                "of the row."
            )


def load_model(config: ModelConfig, adapter: Path | None = None) -> LoraModel:
    """Load a causal LM and its tokenizer and put LoRA on it.

    Args:
        config: which model, and the LoRA.
        adapter: folder of an adapter to put on it instead, as peft puts it on, with its own rank,
            alpha and targets. Nothing is trainable then: theta has length 0.

    Raises:
        UserError: no such model, no tokenizer, a device or an attention kernel that is not there, a
            checkpoint that is damaged or of another kind, a tokenizer with more ids than the model
            has embeddings, a model that cannot take `inputs_embeds` alone, or an adapter that
            cannot be put on it.
    """
    if adapter is not None:
        _check_flags(config, adapter)
    folder = checkpoints.locate(config.model)
    settings = read_config(folder, config.model)
    tokenizer = load_tokenizer(folder, config.model)
    dtype = DTYPES[config.dtype]
    how = quantized.loading(config, dtype, resolve_device(config.device))
    hf, notes = load_weights(folder, settings, config.model, dtype, config.attention, how)
    quantized.own_products(hf, dtype)
    named = replace(config, model=str(config.model))
    return LoraModel(hf, tokenizer, named, adapter=adapter, notes=notes)


def _check_flags(config: ModelConfig, adapter: Path) -> None:
    """Refuse an adapter that is not whole, or a flag that says something else of it."""
    options, _ = adapters.check(adapter)
    unsaid = ModelConfig()
    for name, field in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        flag, said = f"--{field.replace('_', '-')}", getattr(config, field)
        if said not in (options[name], getattr(unsaid, field)):
            raise UserError(
                f"{adapter}: its {name} is {options[name]}, and {flag} says {said}; give {flag} "
                f"{options[name]}, or no such flag: an adapter brings its own."
            )
    targets = options["target_modules"]
    if config.lora_targets != unsaid.lora_targets and {*config.lora_targets} != {*(targets or ())}:
        raise UserError(
            f"{adapter}: its target_modules are {targets}, and --lora-targets says "
            f"{' '.join(config.lora_targets)}; give no such flag: an adapter brings its own."
        )


def adapter_folder(model: LoraModel, theta: Tensor, folder: Path) -> None:
    """Save theta (P,) as a `peft` adapter that any user of the base model can load."""
    model.write(theta)
    # The vocabulary is never changed; by default peft would save the whole head beside LoRA on it.
    model.peft.save_pretrained(folder, save_embedding_layers=False)


__all__ = [
    "DTYPES",
    "LoraModel",
    "ModelConfig",
    "adapter_folder",
    "check_ids",
    "load_model",
    "resolve_device",
    "twice_differentiable",
]
