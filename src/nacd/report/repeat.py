"""The command that repeats a run: what differs from the defaults, as flags."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nacd.config import DistillConfig
from nacd.config.demo import EXEMPLARS
from nacd.config.settings import to_dict
from nacd.store.folder import Run


def command(run: Run) -> str:
    """The command that repeats the run in a new folder."""
    out = Path(run.setting("out", "runs/distill"))
    again = f"{out}-again"
    if run.setting("data.data") == EXEMPLARS:  # the distillation of the demo, in its folder
        again = f"{out.parent}-again"
        given = {
            "model": "model.model",
            "budget": "budget",
            "outer_steps": "outer.outer_steps",
            "seed": "seed",
        }
        values = {name: run.setting(key) for name, key in given.items()}
        flags = [f for name, value in values.items() for f in _flag(name, value)]
        return shlex.join(["nacd", "demo", "--out", again, *flags])
    flags = list(_flags(run.config, to_dict(DistillConfig())))
    return shlex.join(["nacd", "distill", "--out", again, *flags])


def _flags(config: Mapping[str, Any], default: Mapping[str, Any]) -> Iterator[str]:
    """Flags for what differs from the defaults; settings that no longer exist are left out."""
    for name, plain in default.items():
        if name not in config or name == "out" or config[name] == plain:
            continue
        if isinstance(plain, Mapping):
            yield from _flags(config[name], plain)
        else:
            yield from _flag(name, config[name])


def _flag(name: str, value: Any) -> Iterator[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        yield flag if value else "--no-" + flag[2:]
    elif isinstance(value, (list, tuple)):
        yield from (flag, *map(str, value))
    elif str(value).startswith("-"):
        yield f"{flag}={value}"
    else:
        yield from (flag, str(value))
