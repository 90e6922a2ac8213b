"""Files written whole or not at all: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from nacd.errors import UserError
from nacd.store.processes import writes

if TYPE_CHECKING:
    import torch  # takes seconds: loaded by who writes or reads tensors


UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says of a place that may not be written."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends well.

    Of several processes, one that does not write here (`nacd.store.processes`) leaves nothing.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    if not writes():
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / path.name
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):
            raise UserError(
                f"{path}: the disk is full. What was written before is whole; free some space and "
                "run the same command again to go on."
            ) from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); make its folder writable, or give "
                "another one."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8, its line ends as they are.

    Raises:
        UserError: the disk is full, the folder cannot be written, or the text holds half of a
            surrogate pair.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        before, half = text[max(0, error.start - 30) : error.start], ord(text[error.start])
        raise UserError(
            f"{path}: cannot be written: after {before!r} comes U+{half:04X}, half of a surrogate "
            "pair and no character. Mend that text where it comes from."
        ) from None
    with whole(path) as partial:
        partial.write_bytes(content)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that every tool ends at the same places.

    Letters of all scripts stand as they are. What is escaped beside JSON's own control characters:
    the other three at which some tools end a line (U+0085, U+2028 and U+2029, as `str.splitlines`
    does), and halves of surrogate pairs, which UTF-8 cannot hold. Numbers that are not finite are
    null.
    """
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def json_lines(values: Iterable[Any]) -> str:
    """Values as JSON lines, each by `json_text`."""
    return "".join(json_text(value) + "\n" for value in values)


def finite(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, see `json_text`; numbers that are not finite become null."""
    write_text(path, json_text(value, indent=2) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file whole, row by row; numbers that are not finite become null."""
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.writelines(json_text(row) + "\n" for row in rows)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that a run wrote; NaN, which older versions wrote, is None.

    Raises:
        UserError: it is damaged; it is named.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({error}); delete it, and run the same command again."
        ) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, a last broken one left out; none where there is no file.

    Only a line feed ends a line: JSON may hold U+2028 and its kin as they are.
    """
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                rows.append(_parsed(line))
            except ValueError:
                break
    return rows


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole; `metadata` goes into its header, and a seal of all of it.

    It goes there as one JSON entry: several would stand in another order each time, and the same
    tensors would not make the same bytes.
    """
    from safetensors.torch import save_file

    cpu = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    said = dict(metadata or {}) | {"file": path.name}
    header = {"nacd": json.dumps(said | {SEAL: _seal(said, cpu)}, sort_keys=True)}
    with whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # what any other new file gets: safetensors' own is 0600
        save_file(cpu, partial, metadata=header)
        partial.chmod(mode)


def read_tensors(
    path: Path, *, renamed: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors (on the CPU) and its metadata.

    Args:
        path: the file; one without a seal, which others wrote, is read as it is.
        renamed: whether it may have another name than it was written under.

    Raises:
        UserError: the file is damaged, or has taken another's place; it is named.
    """
    mend = "delete it, and run the command that made it again"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        said = json.loads(header["nacd"]) if "nacd" in header else header
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {mend}.") from error
    seal = said.pop(SEAL, None)
    if seal is not None and seal != _seal(said, tensors):
        raise UserError(f"{path}: damaged (its content is not what was written); {mend}.")
    written = said.pop("file", path.name)
    if written != path.name and not renamed:
        raise UserError(
            f"{path}: not what belongs here: it was written as {written}; move it back, or {mend}."
        )
    return tensors, said


SEAL = "seal"
"""Key of a hash of all that stands beside it."""


def _seal(said: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    text = json.dumps(dict(said), sort_keys=True) + content_sha256(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def content_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors (on the CPU)."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
