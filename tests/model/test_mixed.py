"""A 16-bit model sees what LoRA has learned, however little it is beside the frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nacd.data import Batch
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.mixed import SHORT
from nacd.model.upcast import in_float32
from tiny import ROWS

Folder = Callable[[str], Path]


def batch() -> Batch:
    ids = torch.randint(5, ROWS - 10, (4, 12), generator=torch.Generator().manual_seed(0))
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, 4:] = True
    return Batch(ids, torch.ones_like(ids), response, torch.full_like(ids, -1))


def short(folder: Path, dtype: str) -> LoraModel:
    return load_model(ModelConfig(str(folder), dtype=dtype, device="cpu", lora_rank=2))  # pyright: ignore[reportArgumentType]


def small_step(model: LoraModel, size: float = 1e-3) -> Tensor:
    """LoRA after a step or two: it adds little to what the frozen matrices make."""
    along = torch.arange(model.size, dtype=torch.float32)
    return model.fresh_theta(0) + size * torch.sin(along)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 1e-3), ("float16", 1e-4)])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_what_lora_adds_is_not_rounded_away(
    arch: str, dtype: str, size: float, tiny_folder: Folder
) -> None:
    low = short(tiny_folder(arch), dtype)

    def added() -> Tensor:
        """By how much LoRA changes what the first of its modules hands on."""
        outputs: dict[str, list[Tensor]] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda _, args, output: outputs.setdefault(name, []).append(output.float())

        layers = [(n, m) for n, m in low.hf.named_modules() if hasattr(m, "base_layer")]
        hooks = [module.register_forward_hook(keep(name)) for name, module in layers]
        for theta in (low.zero_theta(), small_step(low, size)):
            low.row_nll(theta, batch())
        for hook in hooks:
            hook.remove()
        (without, with_it), *_ = outputs.values()
        return (with_it - without).flatten().double()

    found = added()
    with in_float32(low):
        expected = added()
    assert float((found - expected).norm()) < 0.05 * float(expected.norm())


def test_matrices_are_multiplied_in_16_bits_and_sums_are_float32(tiny_folder: Folder) -> None:
    low = short(tiny_folder("llama"), "bfloat16")
    seen: set[torch.dtype] = set()
    layer = low.hf.model.layers[1]
    layer.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    low.row_nll(small_step(low), batch())
    assert seen == {torch.float32}
    assert {p.dtype for p in low.hf.parameters() if not p.requires_grad} == {SHORT[0]}
    assert short(tiny_folder("llama"), "float32").short is None, "a float32 model stays as it is"


def test_the_module_itself_stays_a_16_bit_model(tiny_folder: Folder) -> None:
    """For lm-eval and transformers, which pass ids through it."""
    low = short(tiny_folder("llama"), "bfloat16")
    low.write(small_step(low))
    with torch.no_grad():
        assert low.hf(input_ids=batch().ids).logits.dtype == torch.bfloat16
