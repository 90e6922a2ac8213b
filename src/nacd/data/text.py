"""Files as they come: compressed by gzip or not, in UTF-8 or UTF-16, or no data at all."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from nacd.errors import UserError

HEAD = 1024
"""Bytes that tell what a file is."""

_GZIP = b"\x1f\x8b"
_WIDE = {  # longest first: UTF-32's mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FOREIGN = {
    b"PK\x03\x04": (
        "a ZIP archive, which an Excel workbook is too",
        "Unpack it, or save the workbook as CSV",
    ),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "Save it as CSV"),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it"),
    b"BZh": ("compressed by bzip2", "Unpack it"),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it"),
    b"ARROW1": ("an Arrow file", "Save it as Parquet"),
    b"SQLite format 3": ("an SQLite database", "Save the table as CSV or JSON lines"),
    b"%PDF": ("a PDF document", "Save its rows as CSV or JSON lines"),
}
_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml|error)\b", re.IGNORECASE)


@contextlib.contextmanager
def opened(path: Path, name: str) -> Iterator[io.BufferedReader[io.RawIOBase]]:
    """A file for reading, unpacked if it is compressed by gzip; what is no data is refused.

    Args:
        path: the file.
        name: as the user calls it.

    Raises:
        UserError: it cannot be read, or is a Git LFS pointer, a web page, an archive.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
            plain.seek(0)
            unpacked = gzip.GzipFile(fileobj=plain) if packed else plain
            file = io.BufferedReader(cast(io.RawIOBase, unpacked))
            _check(file.peek(HEAD)[:HEAD], name)
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{name} is a damaged gzip file ({error}): it was cut short or changed on its way. "
            "Fetch it anew."
        ) from None
    except OSError as error:
        raise UserError(
            f"{name} cannot be read ({error.strerror or error}). Check the file and your "
            "permission to read it."
        ) from None


def text_lines(path: Path, name: str) -> Iterator[str]:
    r"""The lines of a text file, each with its end; a line ends at "\n" and nowhere else.

    Raises:
        UserError: see `opened`; or it is neither UTF-8 nor marked as UTF-16, or holds null bytes.
    """
    with opened(path, name) as file:
        head = file.peek(HEAD)[:4]
        wide = next((code for mark, code in _WIDE.items() if head.startswith(mark)), "")
        if wide:
            try:
                yield from io.StringIO(file.read().decode(wide), newline="\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name} is marked as {wide.upper()} and is not, or not to its end "
                    f"({error.reason}). Fetch it anew, or save it as UTF-8."
                ) from None
            return
        for number, raw in enumerate(file, start=1):
            if b"\0" in raw:
                raise UserError(
                    f"{name}:{number} holds null bytes: the file is in UTF-16 without a mark that "
                    "says so, or damaged. Save it as UTF-8, or fetch it anew."
                )
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(name, number, raw, error) from None


def _check(head: bytes, name: str) -> None:
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(
            f"{name} is a Git LFS pointer, not the data: run `git lfs pull` where it was cloned."
        )
    if head.startswith(b"/annex/objects/"):
        raise UserError(
            f"{name} is a git-annex pointer, not the data: run `git annex get` where it was cloned."
        )
    for mark, (what, mend) in _FOREIGN.items():
        if head.startswith(mark):
            raise UserError(f"{name} is {what}. {mend}.")
    if _PAGE.match(head.removeprefix(codecs.BOM_UTF8).lstrip()):
        raise UserError(
            f"{name} is a web page (HTML or XML), not data: most likely a login page or an error "
            "that was saved in its place. Fetch the file anew."
        )


def _not_utf8(name: str, number: int, raw: bytes, error: UnicodeDecodeError) -> UserError:
    if error.reason == "unexpected end of data" and not raw.endswith(b"\n"):
        return UserError(
            f"{name}:{number} ends in the middle of a character: the file was cut short. Fetch it "
            "anew."
        )
    near = raw[max(0, error.start - 12) : error.start + 12].decode("cp1252", errors="replace")
    return UserError(
        f"{name}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x}; as Windows-1252 it reads "
        f"{near.strip()!r}). Save the file as UTF-8 (Excel: CSV UTF-8), or if that reading is "
        "right: iconv -f WINDOWS-1252 -t UTF-8"
    )
