"""Libraries that only some commands need, each with the extra of the package that brings it."""

from __future__ import annotations

from importlib.util import find_spec

from nacd.errors import UserError

EXTRAS = {
    "bitsandbytes": "quantize",
    "bm25s": "select",
    "datasketch": "select",
    "gguf": "gguf",
    "lm_eval": "eval",
    "plotly": "report",
    "tensorboard": "track",
    "trl": "train",
}
"""By the name that is imported, the extra: `pip install "nacd[EXTRA]"`."""


def installed(module: str) -> bool:
    """Whether a library can be imported; it is not."""
    return find_spec(module) is not None


def install(module: str) -> str:
    """The command that installs a library; one without an extra goes by its own name."""
    named = f'"nacd[{EXTRAS[module]}]"' if module in EXTRAS else module
    return f"pip install {named}"


def require(module: str, what: str, otherwise: str = "") -> None:
    """Refuse what needs a library that is not installed.

    Args:
        module: the name that is imported.
        what: the flag or command that needs it.
        otherwise: what can be done instead, after "or".

    Raises:
        UserError: with the command that installs it.
    """
    if not installed(module):
        other = f", or {otherwise}" if otherwise else ""
        raise UserError(
            f"{what}: needs the package {module.replace('_', '-')}, which is not installed; run "
            f"`{install(module)}`{other}."
        )
