"""The methods that choose real rows, and what is refused of their settings; no code of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nacd.config.limits import check_counts
from nacd.config.selection import SelectionConfig
from nacd.errors import UserError
from nacd.store.extras import require


@dataclass(frozen=True)
class MethodEntry:
    """One method of `METHODS`; its code is loaded when it is used."""

    about: str
    """What it chooses, in a few words."""
    module: str
    """Where it lives; the function has the module's name."""
    name: str = ""
    """The name that people know, if it is not that of the flag."""
    needs_target: bool = False
    """Whether it looks at target rows."""
    package: str = ""
    """A package of the extra `select` that it needs."""
    orders: bool = False
    """Whether it chose the order of its rows, too, as one to train in."""
    judged: bool = False
    """Whether rows set aside, or the target rows, judge what it tries (--judge)."""
    reads_model: bool = True
    """Whether anything passes through the model; else its weights are not read."""
    anytime: bool = False
    """Whether it searches for --minutes, and goes on when it is given more."""
    of_budget: bool = False
    """Whether its ranking depends on the budget."""
    dear: bool = False
    """Whether it costs many trainings: `nacd check` leaves it for the end."""


METHODS: dict[str, MethodEntry] = {
    "random": MethodEntry(
        "a seeded random draw", "nacd.selection.random", orders=True, reads_model=False
    ),
    "best-of": MethodEntry(
        "the best of several random draws, each trained on",
        "nacd.selection.best_of",
        orders=True,
        judged=True,
        of_budget=True,
    ),
    "swaps": MethodEntry(
        "a random draw with rows swapped for worthier ones, as long as time allows",
        "nacd.selection.swaps",
        judged=True,
        anytime=True,
        of_budget=True,
        dear=True,
    ),
    "winnow": MethodEntry(
        "random sets trained on, the rows of the worse ones dropped, as long as time allows",
        "nacd.selection.winnow",
        judged=True,
        anytime=True,
        of_budget=True,
        dear=True,
    ),
    "longest": MethodEntry("the longest responses", "nacd.selection.longest", reads_model=False),
    "kcenter": MethodEntry(
        "rows spread over the hidden states", "nacd.selection.kcenter", "k-center"
    ),
    "bm25": MethodEntry(
        "rows that share rare words with the target rows",
        "nacd.selection.bm25",
        "BM25",
        needs_target=True,
        package="bm25s",
        reads_model=False,
    ),
    "rds+": MethodEntry(
        "rows with hidden states like the target rows'",
        "nacd.selection.rds",
        "RDS+",
        needs_target=True,
    ),
    "less": MethodEntry(
        "rows with gradients like the target rows' (LESS)",
        "nacd.selection.less",
        "LESS",
        needs_target=True,
        dear=True,
    ),
    "trajectory": MethodEntry(
        "rows whose weight in a training lowers the target loss",
        "nacd.selection.trajectory",
        needs_target=True,
        of_budget=True,
        dear=True,
    ),
}


def check_method(method: str, config: SelectionConfig, flag: str = "--method") -> None:
    """Refuse what no method can choose by, before anything is read.

    Args:
        method: a name.
        config: the settings of all methods.
        flag: the flag that named the method.

    Raises:
        UserError: an unknown method, a package that is not installed, or a value out of range.
    """
    if method not in METHODS:
        raise UserError(f"{flag} {method}: unknown; the methods are {', '.join(METHODS)}.")
    if METHODS[method].package:
        require(METHODS[method].package, f"{flag} {method}")
    if not 0 <= config.dedup <= 1:
        raise UserError(
            f"--dedup {config.dedup:g}: a similarity, must lie between 0 (none) and 1 (same words)."
        )
    if config.dedup:
        require("datasketch", f"--dedup {config.dedup:g}")
    if not 0 < config.warmup_share <= 1:
        raise UserError(
            f"--warmup-share {config.warmup_share:g}: a share of the rows, must be above 0 and at "
            "most 1."
        )
    if not 0 < config.minutes < math.inf:
        raise UserError(f"--minutes {config.minutes:g}: must be above 0.")
    if config.swaps_from == "swaps" or config.swaps_from not in METHODS:
        others = ", ".join(name for name in METHODS if name != "swaps")
        raise UserError(f"--swaps-from {config.swaps_from}: give one of {others}.")
    if config.also_rates and len(config.also_rates) != len(config.also):
        raise UserError(
            f"--also-rates {' '.join(f'{rate:g}' for rate in config.also_rates)}: give one for "
            f"each of the {len(config.also)} models of --also, or none."
        )
    for rate in config.also_rates:
        if not 0 < rate < math.inf:
            raise UserError(f"--also-rates {rate:g}: must be above 0.")
    names = ("tries", "warmup_epochs", "projection_dim", "weight_passes")
    check_counts(*((f"--{name.replace('_', '-')}", getattr(config, name), 1) for name in names))
