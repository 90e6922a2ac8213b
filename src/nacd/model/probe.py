"""What an architecture has to do for its rows to be learned and packed: tried when it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nacd.config import ModelConfig
from nacd.errors import UserError


def resolve_device(device: str) -> torch.device:
    """The torch device for a `--device` value.

    Raises:
        UserError: the device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device]:
        raise UserError(f"--device {device}: PyTorch sees no such device here; use --device auto.")
    return torch.device(device)


def require_causal(hf: Any, config: ModelConfig) -> None:
    """Refuse a model that is not causal, or whose forward needs ids beside `inputs_embeds`."""
    table = hf.get_input_embeddings().weight
    ids = torch.tensor([[3, 5, 7, 4], [3, 5, 7, 8]], device=table.device) % len(table)
    hf.eval()
    with torch.no_grad():
        expected = hf(input_ids=ids).logits
        try:
            found = hf(inputs_embeds=hf.get_input_embeddings()(ids)).logits
        except Exception as error:
            raise UserError(
                f"--model {config.model}: its forward does not accept inputs_embeds alone "
                f"({type(error).__name__}: {error}), so pseudo-prompts cannot be learned on "
                "it; choose another model."
            ) from error
    if not bool(expected.isfinite().all()):
        raise UserError(
            f"--model {config.model}: its weights are finite, but its logits are not in "
            f"--dtype {config.dtype}; give --dtype float32."
        )
    scale = float(expected.abs().max()) + 1e-6
    if float((expected[0, :3] - expected[1, :3]).abs().max()) > scale * (
        0.05 if config.low else 1e-4
    ):
        raise UserError(
            f"--model {config.model}: its logits at a token change with the tokens after it, "
            f"so {type(hf).__name__} is no causal language model here; choose another model."
        )
    if not float((found - expected).abs().max()) <= (0.05 if config.low else 1e-3) * scale:
        raise UserError(
            f"--model {config.model}: its logits from inputs_embeds differ from those from "
            "ids (it reads the ids elsewhere too), so pseudo-prompts cannot be learned on it; "
            "choose another model."
        )


def tells_rows_apart(hf: Any, config: ModelConfig) -> bool:
    """Whether `position_ids` that begin anew keep rows in one sequence from each other.

    What the second row's logits would move by, if it saw the first one, is the yardstick.
    """
    embed = hf.get_input_embeddings()
    ids = torch.tensor([[3, 5, 7, 4, 11, 6, 9]], device=embed.weight.device)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=embed.weight.device)
    with torch.no_grad():
        rows = embed(ids % len(embed.weight))

        def second(**inputs: Any) -> Tensor:
            return hf(**inputs, use_cache=False).logits[:, -3:].float()

        alone = second(inputs_embeds=rows[:, 4:])
        seen = float((second(inputs_embeds=rows) - alone).abs().max())
        try:
            packed = second(inputs_embeds=rows, position_ids=positions)
        except Exception:  # whatever an architecture says to an argument that it does not know
            return False
    tolerance = 0.1 if config.low else 1e-3
    return bool(float((packed - alone).abs().max()) <= tolerance * seen)
