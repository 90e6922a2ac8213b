"""Adapters on tiny models as peft makes and applies them, for tests of adapters."""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from nacd.data import Encoded
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.training.evaluation import response_nll

Folder = Callable[[str], Path]

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "opt": ["q_proj", "fc1"],
    "gpt2": ["c_attn", "c_fc"],
    "gemma3": ["q_proj", "up_proj"],
    "qwen3": ["o_proj", "gate_proj"],
}
RANK, ALPHA = 4, 8
LINES = [
    Encoded((1, 40, 41, 42, 43, 44, 45), (False,) * 4 + (True,) * 3, (1, 4)),
    Encoded((1, 7, 200, 201, 15), (False, False, True, True, True), (1, 2)),
]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """peft comments on unusual options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base(folder: Path, dtype: str = "float64") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def make(folder: Path, out: Path, *, dtype: str = "float64", **values: Any) -> Path:
    """An adapter by peft, everything in it that is trained moved away from its start."""
    settings = {"task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA} | values
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = get_peft_model(base(folder, dtype), LoraConfig(**settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(str(out))
    return out


def edit(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def nll_by_peft(folder: Path, adapter: Path, dtype: str = "float64") -> list[float]:
    """Every line's summed response NLL, by peft alone and from ids."""
    with silent():
        model = PeftModel.from_pretrained(base(folder, dtype), str(adapter)).eval()
    return [nll_of(model, line) for line in LINES]


def nll_of(model: Any, line: Encoded) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([line.ids])).logits[0].double()
    scores = torch.log_softmax(logits, -1)
    return -sum(float(scores[i - 1, line.ids[i]]) for i in range(1, len(line)) if line.response[i])


def nll_here(model: LoraModel, theta: torch.Tensor) -> list[float]:
    return response_nll(model, theta, LINES).nll.tolist()


@functools.cache
def plain_lora(folder: Path, arch: str, dtype: Any) -> LoraModel:
    """A model with the LoRA that an expert of it has."""
    settings: dict[str, Any] = {"lora_rank": RANK, "lora_alpha": ALPHA, "device": "cpu"}
    targets = tuple(TARGETS[arch])
    return load_model(ModelConfig(str(folder), dtype, lora_targets=targets, **settings))
