"""The files of a checkpoint, looked at before they are read: whole, safetensors, of sane sizes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from nacd.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file that is not whole.

    Raises:
        UserError: it is a Git LFS pointer, or damaged.
    """
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); download or copy it again.") from error


def said(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters, without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else text[:297] + "...").rstrip(".")


def shape(size: Iterable[int]) -> str:
    """A tensor's shape, as in `49154 x 576`."""
    return " x ".join(map(str, size))


def check_files(place: Path, model: str) -> None:
    """Refuse a folder without safetensors, or with some that are missing or damaged."""
    if not place.is_dir():
        return
    index = place / "model.safetensors.index.json"
    shards = [place / "model.safetensors"]
    if not shards[0].is_file() and index.is_file():
        try:
            held = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            shards = [place / inside(name) for name in sorted(set(held))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: damaged ({said(error)}); download it again.") from error
        if lost := [shard.name for shard in shards if not shard.is_file()]:
            raise UserError(
                f"--model {model}: {index.name} names {len(shards)} files, and {listed(lost)} "
                f"{'is' if len(lost) == 1 else 'are'} not there; download or copy the rest."
            )
    elif not shards[0].is_file():
        pickles = sorted(path.name for path in place.iterdir() if path.suffix in PICKLES)
        if any(name.startswith("pytorch_model") for name in pickles):
            raise UserError(
                f"--model {model}: its weights are pickled ({pickles[0]}), and a pickle can run "
                "any code, so none is read; if you trust it, convert it once:\n  python -c "
                '"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
                f"M.from_pretrained('{place}').save_pretrained('NEW'); "
                f"T.from_pretrained('{place}').save_pretrained('NEW')\"\n"
                "and give --model NEW."
            )
        raise UserError(
            f"--model {model}: the folder has no weights (model.safetensors, or "
            f"{index.name} and its files); download or copy them too."
        )
    for shard in shards:
        check_safetensors(shard)


def inside(name: str) -> str:
    """A file's name that another file gives, which may not lead out of its folder.

    Raises:
        ValueError: it does.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leads out of the folder")
    return name


def check_sizes(place: Path, text: Any, model: str) -> None:
    """Refuse a configuration of far more numbers than there are weights, before they get memory."""
    stored = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    found = {name: getattr(text, name, None) for name in names}
    sizes = {name: value for name, value in found.items() if isinstance(value, int)}
    rows, width, layers, middle = (sizes.get(name, 0) for name in names)
    if stored and width * (rows + layers * max(width, middle)) > 8 * stored:
        said = ", ".join(f"{name} {value}" for name, value in sizes.items())
        raise UserError(
            f"--model {model}: config.json says {said}, which is far more than the {stored:,} "
            "bytes of weights beside it hold; bring back the config.json that belongs to them."
        )


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer in place of a file."""
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs.github.com/spec/"):
            raise UserError(
                f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` where it was "
                "cloned."
            )


def more(found: Collection[Any]) -> str:
    """How many there are beside the first, for the end of a message."""
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def listed(names: Collection[str]) -> str:
    """The first three names, and how many more."""
    return ", ".join([*names][:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
