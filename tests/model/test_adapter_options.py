"""Every option that peft has: applied as `PeftModel.from_pretrained` applies it, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.lora import config as options
from peft_adapters import (
    TARGETS,
    edit,
    make,
    nll_by_peft,
    nll_here,
    plain_lora,
)

from nacd.errors import UserError
from nacd.experts import read_adapter
from nacd.model import adapters
from nacd.model.lora import ModelConfig, load_model

Folder = Callable[[str], Path]


@dataclass(frozen=True)
class Case:
    """An option at a value that is not its default."""

    values: dict[str, Any]
    evaluated: bool = True
    """Whether it is applied, or refused by its name."""
    imported: bool = False
    """Whether an expert may be made of it, or it is refused by its name."""
    arch: str = "llama"
    dtype: str = "float64"
    written: dict[str, Any] = field(default_factory=dict)
    """What is written into `adapter_config.json`, where peft cannot make such an adapter here."""
    named: str = ""
    """What an import names instead of the option."""


def plain(**values: Any) -> Case:
    """An option that has no say in what A and B mean."""
    return Case(values, imported=True)


def noted(**written: Any) -> Case:
    """The same, written by hand."""
    return Case({}, imported=True, written=written)


def targets(**values: Any) -> Case:
    """LoRA on other modules."""
    return Case(values, named="--lora-targets")


def start(value: Any, **more: Any) -> Case:
    return Case({"init_lora_weights": value}, **more)


def hand(**written: Any) -> Case:
    return Case({}, evaluated=False, written=written)


CASES: dict[str, list[Case]] = {
    "task_type": [
        plain(task_type=None),
        plain(task_type="FEATURE_EXTRACTION"),
        Case({"task_type": "SEQ_CLS"}, named="modules_to_save"),
    ],
    "peft_type": [hand(peft_type="ADALORA")],
    "auto_mapping": [plain(task_type=None, auto_mapping={"parent_library": "transformers"})],
    "peft_version": [noted(peft_version="9.0.0")],
    "base_model_name_or_path": [plain(base_model_name_or_path="owner/name")],
    "revision": [plain(revision="abc")],
    "inference_mode": [noted(inference_mode=False)],
    "r": [Case({"r": 3})],
    "target_modules": [
        plain(target_modules=r".*\.(q_proj|v_proj|down_proj)"),
        targets(target_modules=["q_proj"]),
        targets(target_modules="all-linear"),
        Case({"target_modules": ["q_proj", "lm_head"]}, named=r"lm_head\.base_layer"),
        Case({"target_modules": ["q_proj", "embed_tokens"]}, named=r"embed_tokens\.base_layer"),
    ],
    "exclude_modules": [targets(exclude_modules=["v_proj"]), plain(exclude_modules=["lm_head"])],
    "lora_alpha": [Case({"lora_alpha": 5}), Case({"lora_alpha": 2.5})],
    "lora_dropout": [plain(lora_dropout=0.5)],
    "fan_in_fan_out": [
        plain(fan_in_fan_out=True),
        Case({"fan_in_fan_out": True}, imported=True, arch="gpt2"),
    ],
    "bias": [
        Case({"bias": "all"}, arch="opt"),
        Case({"bias": "lora_only"}, arch="opt"),
        Case({"bias": "all"}, arch="gpt2"),
    ],
    "use_rslora": [Case({"use_rslora": True})],
    "modules_to_save": [
        Case({"modules_to_save": ["lm_head"]}),
        Case({"modules_to_save": ["embed_tokens", "lm_head"]}, arch="opt"),
        Case({"modules_to_save": ["norm"]}),
    ],
    "init_lora_weights": [
        *(start(value, imported=True) for value in (False, "gaussian", "orthogonal", "eva")),
        noted(init_lora_weights=None),
        *(start(value, dtype="float32") for value in ("pissa", "olora", "mica")),
        start("pissa_niter_4", dtype="float32", evaluated=False),
        start("lora_ga", evaluated=False),
        hand(init_lora_weights="corda"),
        hand(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
        hand(init_lora_weights="later"),
    ],
    "layers_to_transform": [Case({"layers_to_transform": [1]}), Case({"layers_to_transform": 0})],
    "layers_pattern": [
        Case({"layers_to_transform": [1], "layers_pattern": "layers"}, named="layers_to_transform")
    ],
    "rank_pattern": [Case({"rank_pattern": {"q_proj": 2}})],
    "alpha_pattern": [Case({"alpha_pattern": {"q_proj": 2}})],
    "megatron_config": [hand(megatron_config={"hidden_size": 32})],
    "megatron_core": [plain(megatron_core="megatron.other")],
    "trainable_token_indices": [
        Case({"trainable_token_indices": [5, 7]}),
        Case({"trainable_token_indices": [5, 7]}, arch="gemma3"),
    ],
    "loftq_config": [noted(loftq_config={"loftq_bits": 4})],
    "eva_config": [plain(eva_config=options.EvaConfig())],
    "corda_config": [plain(corda_config=options.CordaConfig())],
    "lora_ga_config": [plain(lora_ga_config=options.LoraGAConfig())],
    "use_dora": [Case({"use_dora": True}), Case({"use_dora": True}, arch="gpt2")],
    "velora_config": [Case({"velora_config": options.VeloraConfig()})],
    "alora_invocation_tokens": [Case({"alora_invocation_tokens": [40, 41]}, evaluated=False)],
    "use_qalora": [Case({"use_qalora": True}, evaluated=False)],
    "qalora_group_size": [plain(qalora_group_size=4)],
    "monteclora_config": [Case({"monteclora_config": options.MontecloraConfig()})],
    "layer_replication": [Case({"layer_replication": [(0, 2), (1, 2)]})],
    "runtime_config": [plain(runtime_config=options.LoraRuntimeConfig(ephemeral_gpu_offload=True))],
    "lora_bias": [Case({"lora_bias": True})],
    "target_parameters": [Case({"target_parameters": ["mlp.gate_proj.weight"]})],
    "use_bdlora": [
        Case(
            {
                "use_bdlora": options.BdLoraConfig(
                    target_modules_bd_a=["down_proj"],
                    target_modules_bd_b=["q_proj", "v_proj"],
                    nblocks=2,
                )
            }
        )
    ],
    "arrow_config": [hand(arrow_config={"top_k": 3})],
    "kasa_config": [Case({"kasa_config": options.KasaConfig()})],
    "ensure_weight_tying": [
        plain(ensure_weight_tying=True),
        Case(
            {"ensure_weight_tying": True, "modules_to_save": ["lm_head"]},
            arch="qwen3",
            named="modules_to_save",
        ),
    ],
}


def cases() -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, found in CASES.items()
        for number, case in enumerate(found)
    ]


def test_every_option_of_peft_is_known() -> None:
    """A new peft with a new option fails here: say what it does, and give it a case."""
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    tables = [adapters.NO_MATTER, adapters.APPLIED, {*adapters.REFUSED}]
    assert set().union(*tables) == known
    assert sum(map(len, tables)) == len(known), "each in one table"
    assert set(CASES) == known


@pytest.mark.parametrize(("name", "case"), cases())
def test_an_option_is_applied_as_peft_applies_it_or_refused(
    name: str, case: Case, tiny_folder: Folder, tmp_path: Path
) -> None:
    folder = tiny_folder(case.arch)
    settings = {"target_modules": TARGETS[case.arch]} | case.values
    adapter = make(folder, tmp_path / "adapter", dtype=case.dtype, **settings)
    edit(adapter, **case.written)
    dtype: Any = case.dtype
    config = ModelConfig(str(folder), dtype, device="cpu")
    same: dict[str, Any] = {"rel": 1e-6 if case.dtype == "float64" else 1e-4}

    if case.evaluated:
        model = load_model(config, adapter)
        expected = nll_by_peft(folder, adapter, case.dtype)
        assert nll_here(model, model.zero_theta()) == pytest.approx(expected, **same)
    else:
        with pytest.raises(UserError, match=name):
            load_model(config, adapter)

    own = plain_lora(folder, case.arch, case.dtype)
    if case.imported:
        expected = nll_by_peft(folder, adapter, case.dtype)
        assert nll_here(own, read_adapter(own, adapter)) == pytest.approx(expected, **same)
    else:
        with pytest.raises(UserError, match=case.named or name):
            read_adapter(own, adapter)
