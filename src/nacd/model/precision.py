"""Matrix products in the format of their numbers, where a caller has allowed faster ones.

TensorFloat-32 keeps 10 bits of a float32 number's 23, bfloat16 7: an ordinary training bears that,
a finite difference of two gradients does not, as it divides what is lost by a small step length.
Autocast, and sums of 16-bit products that are themselves kept in 16 bits, are the same to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_MATMUL: Any = torch.backends.cuda.matmul
_REDUCED = (
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
_FULL = ("ieee", "none", "highest")
"""How PyTorch says that float32 is multiplied as float32; "none" is its default."""


def in_force() -> dict[str, str]:
    """What this process multiplies in, for a run's record: "full", or what a caller has allowed."""
    casting = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    found = {
        "float32_products": {v for v in _read().values() if v not in _FULL},
        "sums_of_16_bit_products": {n.split("_")[1] for n in _REDUCED if _allowed(n)},
        "autocast": {str(torch.get_autocast_dtype(kind)).split(".")[1] for kind in casting},
    }
    return {name: ", ".join(sorted(said)) or "full" for name, said in found.items()}


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """TF32, other short products and autocast are off inside, and as they were afterwards."""
    before, reduced = _read(), [name for name in _REDUCED if _allowed(name)]
    with torch.autocast(device.type, enabled=False), contextlib.ExitStack() as after:
        if not {*before.values()} <= {*_FULL}:
            _raise_precision(after, before)
        for name in reduced:
            setattr(_MATMUL, name, False)
            after.callback(setattr, _MATMUL, name, True)
        yield


def _raise_precision(after: contextlib.ExitStack, before: dict[str, str]) -> None:
    """Set float32 products to full; PyTorch refuses to mix its two ways of saying so."""
    for name, value in before.items():
        if name != "legacy":
            after.callback(setattr, _backends()[name], "fp32_precision", value)
    if "legacy" in before:
        after.callback(torch.set_float32_matmul_precision, before["legacy"])
        torch.set_float32_matmul_precision("highest")
    else:
        for backend in _backends().values():
            backend.fp32_precision = "ieee"


def _read() -> dict[str, str]:
    """The settings in force: of every backend (PyTorch 2.9), and by the older, common name."""
    found = {name: str(backend.fp32_precision) for name, backend in _backends().items()}
    with contextlib.suppress(RuntimeError):  # only the newer way was used, and it alone is right
        found["legacy"] = torch.get_float32_matmul_precision()
    return found


def _backends() -> dict[str, Any]:
    mkldnn: Any = getattr(torch.backends.mkldnn, "matmul", None)
    both = {"cuda": _MATMUL, "mkldnn": mkldnn}
    return {name: module for name, module in both.items() if hasattr(module, "fp32_precision")}


def _allowed(name: str) -> bool:
    """Whether one of `_REDUCED` is on; a PyTorch that lacks it raises, and it is not."""
    try:
        return bool(getattr(_MATMUL, name))
    except AttributeError:
        return False
