"""A checkpoint's configuration, tokenizer and weights, whole and of the right kind, or one error.

In: the folder or hub id that `nacd.model.checkpoints.locate` found. Out: a causal language model of
text whose every weight came out of the checkpoint, and a tokenizer whose ids all have an embedding.

transformers draws missing weights at random and logs a warning, builds a "causal" model out of a
masked one's weights, unpickles, and asks on the terminal whether it may run a checkpoint's own
code. All of that is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from nacd.errors import UserError
from nacd.model.files import check_files, check_sizes, listed, more, refuse_pointer, said, shape


def read_config(folder: str, model: str) -> Any:
    """The transformers configuration of a causal language model of text.

    Args:
        folder: the model's folder or hub id.
        model: the value of `--model`, for messages.

    Raises:
        UserError: it cannot be read, or is of another kind of model, of quantised weights, or of
            one that needs its own code.
    """
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder)
        if not isinstance(raw, dict):
            raise ValueError("config.json is not a JSON object")
    except Exception as error:
        raise UserError(
            f"--model {model}: cannot be loaded: {said(error)}{_hint(folder)}"
        ) from error
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        _refuse_unknown(model, kind, raw.get("auto_map"))
    for key in ("quantization_config", "compression_config"):
        if raw.get(key):
            method = raw[key].get("quant_method") if isinstance(raw[key], dict) else None
            raise UserError(
                f"--model {model}: its weights are quantised ({method or key} in config.json), and "
                "gradients are taken through plain ones here; give the model that it was made of, "
                "or a .gguf file, which is turned back to float32."
            )
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"--model {model}: config.json cannot be read: {said(error)}; bring back the file that "
            "belongs to these weights."
        ) from error
    _check_kind(model, settings, raw)
    text = settings.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
        raise UserError(
            f"--model {model}: config.json has pad_token_id {pad}, but vocab_size {rows}; set "
            f"pad_token_id to an id below {rows}, or to null."
        )
    return settings


def _refuse_unknown(model: str, kind: str | None, auto_map: Any) -> None:
    release = f"transformers {transformers.__version__}"
    if auto_map:
        raise UserError(
            f"--model {model}: it needs Python code of its own (auto_map in config.json), which "
            "could do anything on this machine and is not run; choose a model that "
            f"{release} has built in."
        )
    if kind is None:
        raise UserError(
            f"--model {model}: config.json has no model_type, so nobody knows what the weights "
            "are; bring back the file that belongs to them."
        )
    raise UserError(
        f"--model {model}: {release} knows no model_type {kind!r}; install a newer transformers, "
        "or choose another model."
    )


def _check_kind(model: str, settings: Any, raw: Mapping[str, Any]) -> None:
    """Refuse anything but a causal language model of text."""
    built = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None)
    built = built[0] if isinstance(built, tuple) else built
    names = raw.get("architectures") or [str(raw.get("model_type"))]
    task = re.search(r"For([A-Z]\w+)$", str(names[0]))
    parts = [*getattr(getattr(built, "config_class", None), "sub_configs", {})]
    if getattr(settings, "is_encoder_decoder", False):
        what = "an encoder-decoder model"
    elif any(sense in part for part in parts for sense in ("vision", "audio")):
        what = "a model of images or sound beside text"
    elif built is None or (task and task[1] not in ("CausalLM", "ConditionalGeneration")):
        what = "no causal language model"
    else:
        return
    raise UserError(
        f"--model {model}: {names[0]} is {what}; expected a causal language model of text "
        "(LlamaForCausalLM and its like)."
    )


def load_tokenizer(folder: str, model: str) -> Any:
    """The tokenizer in a model folder or at a hub id, with a padding token set.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    place = Path(folder)
    if place.is_dir():
        there = [place / name for name in names if (place / name).is_file()]
        if not there:
            raise UserError(
                f"--model {model}: the folder has no tokenizer (none of {', '.join(names)}); save "
                "it there with tokenizer.save_pretrained."
            )
        for path in there:
            refuse_pointer(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"--model {model}: its tokenizer needs Python code of its own (auto_map in "
                "tokenizer_config.json), which could do anything on this machine and is not run; "
                "choose another model."
            ) from error
        raise UserError(
            f"--model {model}: no tokenizer could be loaded: {said(error)}{_hint(folder)}"
        ) from error
    if tokenizer.pad_token_id is None:
        # Padding is never attended to nor a label, so any token that is there will do.
        tokenizer.pad_token = (
            tokenizer.eos_token
            or tokenizer.unk_token
            or tokenizer.bos_token
            or tokenizer.convert_ids_to_tokens(0)
        )
    return tokenizer


def load_weights(
    folder: str,
    settings: Any,
    model: str,
    dtype: torch.dtype,
    attention: str,
    how: Mapping[str, Any] | None = None,
) -> tuple[Any, list[str]]:
    """The model in `folder`, without dropout, every weight of it read and finite.

    Args:
        folder: the model's folder or hub id.
        settings: its configuration, by `read_config`; its dropout rates are set to 0.
        model: the value of `--model`, for messages.
        dtype: number format of the weights.
        attention: attention implementation, by its name in transformers.
        how: more for `from_pretrained`: that weights are quantised, say.

    Returns:
        The model, and lines for the user on what the checkpoint holds beside it.

    Raises:
        UserError: no safetensors, a file missing or damaged, weights missing, of another shape or
            not finite, or an attention implementation that the model lacks.
    """
    if not getattr(settings, "transformers_weights", None):
        check_files(Path(folder), model)
    check_sizes(Path(folder), settings.get_text_config(), model)
    for part in (settings, settings.get_text_config()):
        for key in [k for k in part.to_dict() if "drop" in k]:
            if isinstance(getattr(part, key, None), float):
                setattr(part, key, 0.0)
    # Grouped matrix products of a mixture's experts have no float64 kernel.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    loader: Any = AutoModelForCausalLM  # its stub knows no output_loading_info
    try:
        hf, info = loader.from_pretrained(
            folder,
            config=settings,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **experts,
            **(how or {}),
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if attention != "eager" and "attention" in str(error):
            raise UserError(
                f"--model {model}: it has no --attention {attention}; give --attention eager "
                f"({said(error)})."
            ) from error
        raise UserError(
            f"--model {model}: cannot be loaded: {said(error)}{_hint(folder)}"
        ) from error
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise UserError(
            f"--model {model}: it holds an adapter, which transformers has put on the model; give "
            "a model without one, and the adapter by --adapter of `nacd evaluate`."
        )
    notes = require_whole(hf, info, f"--model {model}")
    _require_finite(hf, model, dtype)
    return hf, notes


def require_whole(
    hf: Any,
    info: Mapping[str, Any],
    source: str,
    stated: str = "config.json",
    mend: str = "bring back the config.json that belongs to these weights",
) -> list[str]:
    """Refuse a model that transformers did not find whole in its checkpoint.

    Args:
        hf: the model as it was loaded.
        info: what `from_pretrained` says of the loading (`output_loading_info`).
        source: the flag and value that named the model, for messages.
        stated: what states the model's sizes, for messages.
        mend: what to do where it is at odds with the weights, for messages.

    Returns:
        A line for the user if the checkpoint holds weights that the model has no place for.

    Raises:
        UserError: weights are missing or of another shape, or there are more layers than
            config.json says.
    """
    kind = type(hf).__name__
    if wrong := sorted(info["mismatched_keys"]):
        name, there, here = wrong[0]
        raise UserError(
            f"{source}: {name} is {shape(there)} in the checkpoint, and {shape(here)} by "
            f"{stated}{more(wrong)}; {mend}."
        )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    names = {*hf.state_dict()}
    loaded = {_layer(name) for name in names - set(missing)}
    deeper = [n for n in unexpected if _layer(n) and _any_layer(n) in map(_any_layer, names)]
    if deeper or (missing and all(_layer(n) and _layer(n) not in loaded for n in missing)):
        layers = getattr(hf.config.get_text_config(), "num_hidden_layers", "other")
        raise UserError(
            f"{source}: {stated} says {layers} layers, and the checkpoint has "
            f"{'more' if deeper else 'fewer'} ({(deeper or missing)[0]}, ...); {mend}."
        )
    head = hf.get_output_embeddings()
    place = next((name for name, module in hf.named_modules() if module is head), "")
    if missing and place and all(name.startswith(f"{place}.") for name in missing):
        raise UserError(
            f"{source}: the checkpoint has no output head ({', '.join(missing)}), which "
            "transformers would draw at random. If it shares the input embeddings, set "
            f"tie_word_embeddings to true in {stated}; if it is a model without a head, choose one "
            "with it."
        )
    if missing:
        instead = f" It has {', '.join(unexpected[:2])} instead." if unexpected else ""
        raise UserError(
            f"{source}: the checkpoint lacks weights of {kind} ({listed(missing)}), which "
            f"transformers would draw at random.{instead} Give the whole checkpoint of a {kind}."
        )
    if unexpected:
        return [
            f"{source}: {kind} has no place for some weights of the checkpoint, which are left out "
            f"({listed(unexpected)})"
        ]
    return []


def check_vocabulary(tokenizer: Any, hf: Any, model: str) -> int:
    """Refuse a tokenizer that has ids beyond the model's embeddings.

    Special tokens beyond them are borne as long as no row holds one: Gemma 3's text models carry
    the tokenizer of its multimodal ones, whose `<image_soft_token>` has the first id too many.

    Returns:
        The number of ids that the model has both an embedding and a logit for.

    Raises:
        UserError: another token, or one that rows are written with, has an id beyond them.
    """
    table, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    if head is None:
        raise UserError(
            f"--model {model}: {type(hf).__name__} has no output head that transformers names; "
            "choose another model."
        )
    rows = min(len(table.weight), len(head.weight))
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    written = str(tokenizer.chat_template or "")
    added = tokenizer.added_tokens_decoder
    needed = [
        token
        for i, token in sorted(beyond.items())
        if i not in added or not added[i].special or i in used or token in written
    ]
    if needed:
        raise UserError(
            f"--model {model}: its tokenizer has ids up to {max(beyond)}, but the model has "
            f"embeddings for {rows} (ids 0 to {rows - 1}): {listed(needed)} would be read past "
            "their end. If tokens were added on purpose, give the model that was resized for them "
            f"(model.resize_token_embeddings({max(beyond) + 1})) and trained; else put the model's "
            "own tokenizer back into its folder."
        )
    return rows


def _require_finite(hf: Any, model: str, dtype: torch.dtype) -> None:
    for name, weight in hf.named_parameters():
        if weight.numel() and not all(bool(end.isfinite()) for end in torch.aminmax(weight)):
            mend = (
                "they may be too large for --dtype float16: give bfloat16 or float32"
                if dtype == torch.float16
                else "the checkpoint is damaged, or its training diverged: give another"
            )
            raise UserError(f"--model {model}: {name} holds numbers that are not finite; {mend}.")


def _hint(folder: str) -> str:
    if Path(folder).is_dir():
        return "."
    return ". Is the name right, the network up, and access granted?"


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)


def _layer(name: str) -> str:
    """`model.layers.2` of `model.layers.2.mlp.up_proj.weight`; empty where there is no number."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else ""
