"""A LoRA adapter that peft saved: what its options mean, and a model with the adapter on it.

In: a folder with `adapter_config.json` and `adapter_model.safetensors`. Out: `attach`, the model as
`PeftModel.from_pretrained` makes it, or one error; `nacd.experts.import_peft` takes the matrices
alone, and only where they mean what the model's own LoRA means by them.

peft has some forty options, and many change what the matrices A and B do, or the weights beneath
them. Each option that peft has is in one of three tables here, and what is in none is refused by
its name.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open

from nacd.errors import UserError
from nacd.model.files import PICKLES, check_safetensors, said, shape

WEIGHTS = "adapter_model.safetensors"
OPTIONS = "adapter_config.json"
PREFIX = "base_model.model."

NO_MATTER = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Options without a say in what matrices of given names and shapes do outside training."""

APPLIED = frozenset(
    {
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "kasa_config",
        "layer_replication",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "monteclora_config",
        "r",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_rslora",
        "velora_config",
    }
)
"""Options that peft applies when it loads an adapter."""

REFUSED = {
    "alora_invocation_tokens": "it acts from a text in the prompt on, which peft finds by "
    "token ids, and models are fed vectors here",
    "arrow_config": "it routes between other adapters, which are not in the folder",
    "megatron_config": "it is for models split by Megatron",
    "use_qalora": "it is for models quantised by GPTQ",
}
"""Options that cannot be applied, and why."""

SAME_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model's weights alone, and A and B free."""

BASE_MADE_ANEW = ("pissa", "olora", "mica")
"""Values that peft repeats when it loads an adapter, with the same result."""


def read_options(folder: Path) -> dict[str, Any]:
    """The options in a folder's `adapter_config.json`.

    Raises:
        UserError: there is no adapter, a damaged one, or none of LoRA; what to give instead is
            named.
    """
    path = folder / OPTIONS
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; give a folder with {OPTIONS} and {WEIGHTS} (an adapter on "
            "the hub has to be downloaded: hf download OWNER/NAME --local-dir FOLDER)."
        )
    if not path.is_file() and (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: it is a model, not an adapter; give it as --model, without --adapter."
        )
    if not path.is_file() and not (folder / WEIGHTS).is_file():
        inner = sorted(p.parent for p in folder.glob(f"*/{OPTIONS}"))
        if inner:
            raise UserError(
                f"{folder}: no {WEIGHTS} there, but in folders of it; give one of these: "
                f"{', '.join(map(str, inner[:4]))}."
            )
    options = read_json(path)
    kind = options.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{path}: peft_type {kind}, but only adapters of type LORA are read. Merge it into its "
            "base model by peft (model.merge_and_unload().save_pretrained(NEW)), where its type "
            "allows that, and give --model NEW."
        )
    return options


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that peft or a Trainer wrote.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; give the folder as peft wrote it.") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); copy or save it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; copy or save it again.")
    return value


def weights_file(folder: Path) -> Path:
    """A folder's `adapter_model.safetensors`.

    Raises:
        UserError: it is not there, pickled, or damaged.
    """
    path = folder / WEIGHTS
    if path.is_file():
        check_safetensors(path)
        return path
    pickles = sorted(p.name for p in folder.glob("adapter_model*") if p.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder}: its weights are pickled ({pickles[0]}), and a pickle can run any code, so "
            f'none is read; convert it once:\n  python -c "import torch; from safetensors.torch '
            f"import save_file; save_file(torch.load('{folder / pickles[0]}', weights_only=True), "
            f"'{path}')\""
        )
    raise UserError(
        f"{folder}: no {WEIGHTS} there; give a LoRA adapter that peft saved as safetensors."
    )


def differing(options: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something else than `own`; None, False, empty, absent are the same."""
    return {
        name: value
        for name, value in options.items()
        if _plain(value) != _plain(own.get(name)) and not (_unset(value) and _unset(own.get(name)))
    }


def defaults() -> dict[str, Any]:
    """Every option of peft's `LoraConfig`, at its default."""
    plain = LoraConfig()
    return {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}


def check(folder: Path) -> tuple[dict[str, Any], Path]:
    """Refuse an adapter that is not whole, or that peft cannot put on any model as it was trained.

    Returns:
        Its options, those that it does not name at peft's defaults, and its safetensors file.

    Raises:
        UserError: see above; a file or an option is named.
    """
    plain = defaults()
    options = plain | read_options(folder)
    source = folder / OPTIONS
    for name, value in differing(options, plain).items():
        if name in REFUSED:
            raise UserError(
                f"{source}: {name} is {value}, and {REFUSED[name]}; measure it by peft itself."
            )
        if name not in NO_MATTER | APPLIED:
            raise UserError(
                f"{source}: {name} is {value}, an option of peft that is not known here; update "
                "nacd, or save the adapter without it."
            )
    start = options["init_lora_weights"]
    if start not in (*SAME_BASE, *BASE_MADE_ANEW):
        raise UserError(
            f"{source}: init_lora_weights is {start}, which changes the base model in a way that "
            "loading cannot repeat. Save it as plain LoRA where it was trained (save_pretrained "
            "with path_initial_model_for_weight_conversion)."
        )
    return options, weights_file(folder)


def refuse_vocabulary(path: Path, hf: Any, model: str) -> None:
    """Refuse an adapter that was saved with embeddings of more or fewer tokens.

    Args:
        path: its safetensors file.
        hf: the base model, without LoRA or with it.
        model: the value of `--model`, for messages.

    Raises:
        UserError: it was; both numbers are named.
    """
    ends = (hf.get_input_embeddings(), hf.get_output_embeddings())
    rows = {_plain_name(name): len(end.weight) for name, end in hf.named_modules() if end in ends}
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if ".lora_" not in key]  # noqa: SIM118
        sizes = {_plain_name(key): file.get_slice(key).get_shape() for key in keys}
    for name, own in rows.items():
        there = sizes.get(f"{PREFIX}{name}.weight", [own])[0]
        if there != own:
            raise UserError(
                f"{path}: {name} has {there} rows, one a token, and --model {model} has {own}: "
                "tokens were added or taken before the adapter was trained. Load the base model, "
                f"resize it (model.resize_token_embeddings({there})), save it with the adapter's "
                "tokenizer, and give that folder as --model."
            )


def attach(hf: Any, folder: Path, model: str) -> Any:
    """Put an adapter on a model, as `PeftModel.from_pretrained` does; nothing of it is trainable.

    Args:
        hf: the base model; it is changed in place.
        folder: the adapter's.
        model: the value of `--model`, for messages.

    Returns:
        The `PeftModel`.

    Raises:
        UserError: no adapter, a damaged one, one of another base model, or an option that cannot be
            applied; what is wrong is named.
    """
    options, path = check(folder)
    refuse_vocabulary(path, hf, model)
    base = options["base_model_name_or_path"] or "another"
    mend = f"adapter_config.json names its base model: {base}; give that as --model."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is an error below
            config = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            peft = PeftModel(hf, config)
            found = peft.load_adapter(str(folder), "default", torch_device=str(hf.device))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{_mismatch(folder, error, model)}. {mend}") from error
    if found.missing_keys or found.unexpected_keys:
        lacking, beside = found.missing_keys, found.unexpected_keys
        parts = [f"lacks {len(lacking)} of its matrices ({lacking[0]})"] if lacking else []
        parts += [f"holds {len(beside)} without a place ({beside[0]})"] if beside else []
        raise UserError(
            f"{path}: on --model {model} the adapter {' and '.join(parts)}; it is of another model "
            f"or damaged. {mend}"
        )
    return peft.requires_grad_(False)  # with `bias`, peft leaves biases trainable


def _mismatch(folder: Path, error: Exception, model: str) -> str:
    """What went wrong while peft loaded an adapter."""
    size = r"size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)"
    if found := re.search(size, str(error), re.DOTALL):
        name, there, here = found.groups()
        sizes = [shape(int(n) for n in part.split(", ") if n) for part in (there, here)]
        return (
            f"{folder / WEIGHTS}: {name} is {sizes[0]}, and {sizes[1]} on --model {model}, so it "
            "is of another model"
        )
    return f"{folder}: peft cannot put it on --model {model} ({said(error)})"


def _unset(value: Any) -> bool:
    return value is None or value is False or value in ((), [], {}, "", set())


def _plain(value: Any) -> Any:
    """A value as JSON has it: sets and tuples are lists, in order where the order says nothing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        flat = [_plain(item) for item in value]
        return sorted(flat) if all(isinstance(item, str) for item in flat) else flat
    return value


def _plain_name(name: str) -> str:
    """A module's name without what peft puts between."""
    return re.sub(r"\.(base_layer|modules_to_save(\.default)?|original_module)\b", "", name)
