"""The frozen layers of a model spread over the processes of a launch: FSDP2 (arXiv 2304.11277).

Each process holds its share of every layer's weights; a layer is put together when it is needed, in
the forward pass and again in the backward pass, and taken apart afterwards. Embeddings, head and
LoRA stay whole everywhere. All processes go through the model with the same rows, so that all have
the same loss and gradients, to the bit: there is nothing to sum over processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nacd.errors import UserError
from nacd.store import processes


def shard(hf: Any, device: torch.device, name: str) -> None:
    """Spread the layers of a transformers model, before LoRA is put on it.

    Args:
        hf: the model, on the CPU; of its layers, only one at a time is whole on the device.
        device: where the shares go.
        name: of the model, for error messages.

    Raises:
        UserError: there is one process alone, or the model's layers cannot be told.
    """
    if processes.count() == 1:
        raise UserError(
            "--shard: spreads a model over several processes, and this is one; start them with "
            "accelerate launch or torchrun, or leave the flag out."
        )
    count = hf.config.get_text_config().num_hidden_layers
    lists = [m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise UserError(
            f"--shard: {name} has no list of {count} layers to spread; leave the flag out, or "
            "choose another --model."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    processes.work_together()
    mesh = init_device_mesh(device.type, (processes.count(),))
    for layer in lists[0]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
