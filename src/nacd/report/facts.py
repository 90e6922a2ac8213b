"""A run in plain words: what was distilled from what, with which recipe, and what to mind."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nacd.recipe import Recipe
from nacd.report.folder import Run
from nacd.report.rungs import Rung, diverged

FEW_TRAININGS = 5
"""Trainings a row below which an interval is called wide."""
FEW_REPORT_ROWS = 100


def number(value: float) -> str:
    """A count with thousands parted: `2,108`."""
    return f"{value:,.0f}"


def signed(value: float, half: float | None) -> str:
    """A difference and half its interval: `+0.001 ± 0.062`, with a true minus."""
    text = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    return text if half is None else f"{text} ± {half:.3f}"


def percent(share: float, decimals: int = 1) -> str:
    """A share as `3.7 %`, the space in it narrow and unbroken."""
    return f"{100 * share:.{decimals}f}\N{NARROW NO-BREAK SPACE}%"


def distance(value: float) -> str:
    """A neighbour distance, in as many digits as mean something."""
    return f"{value:.3f}" if value >= 0.001 else "under 0.001" if value else "0"


def duration(seconds: float) -> str:
    """Seconds for people: `34 s`, `12 min`, `1.9 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


GOALS = {
    "trajectory": "matching expert trajectories",
    "target-loss": "lowering the loss on target rows after a whole training",
    "train-loss": "lowering the loss on other training rows after a whole training",
}


def recipe_of(run: Run) -> Recipe:
    """The recipe of the run's trainings, with the learning rate and epochs that were found."""
    known = {key: value for key, value in run.setting("recipe", {}).items() if key in _RECIPE}
    found = run.tuning or {}
    known |= {key: found[key] for key in ("learning_rate", "epochs") if key in found}
    return Recipe(**known)


_SPLITS = {"train": "training"}
_RECIPE = set(Recipe.__dataclass_fields__)


def verdict(run: Run) -> str:
    """The headline; a hyphen before a figure becomes a minus, and an interval stays beside it."""
    if run.results is not None:
        text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", str(run.results["verdict"]))
        return text.replace(" \N{PLUS-MINUS SIGN}", "\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}")
    return f"No verdict yet: this run has not ended ({run.state})."


def size(run: Run, rungs: Sequence[Rung]) -> tuple[int, int | None, int | None]:
    """Distilled rows, their tokens, and the training rows they come from; None where unknown."""
    rung = next((r for r in rungs if r.method in ("text", "seeds")), None)
    source = None if run.results is None else run.results["sizes"]["train"]
    if rung is None:
        return len(run.dataset), None, source
    return rung.rows, rung.tokens, source


def lead(run: Run, rungs: Sequence[Rung]) -> str:
    """What was distilled from what, with which recipe."""
    rows, tokens, source = size(run, rungs)
    name = Path(run.setting("data.data", "the data")).name
    recipe = recipe_of(run)
    what = f"{number(rows)} rows" if rows else f"A budget of {run.setting('budget')}"
    what += f" ({number(tokens)} tokens)" if tokens else ""
    if source and rows:
        what += f", {percent(rows / source)} of the {number(source)} training rows of {name}."
    else:
        what += f" of {name}."
    goal = GOALS.get(run.setting("outer.objective"), GOALS["target-loss"])
    steps = f"{recipe.total_steps(rows)} steps of " if rows else ""
    return (
        f"{what} Responses are the seed rows' own; prompts were learned on "
        f"{run.setting('model.model')} by {goal}, for a recipe of {steps}"
        f"{'AdamW' if recipe.optimizer == 'adamw' else 'SGD'} at learning rate "
        f"{recipe.learning_rate:g}, {recipe.batch_size} rows a step, "
        f"{'shuffled' if recipe.shuffle else 'in the order of the file'}."
    )


def last_look(run: Run) -> Mapping[str, Any] | None:
    """The look at the development rows that the export comes from; the last, if unknown."""
    looks = [row for row in run.metrics if "development_text" in row]
    step = None if run.learned is None else run.learned.get("exported_step")
    return next((row for row in looks if row["outer_step"] == step), looks[-1] if looks else None)


def tiles(run: Run, rungs: Sequence[Rung]) -> list[tuple[str, str, str]]:
    """The few figures that stand at the top: name, value, remark."""
    known = {rung.method: rung for rung in rungs}
    found = []
    text, seeds = known.get("text"), known.get("seeds")
    if text is not None:
        beside = f"untouched seeds {seeds.mean:.3f}" if seeds else "nats per token"
        found.append(("Report NLL of the text", f"{text.mean:.3f}", beside))
        if text.minus_seeds is not None:
            half = text.minus_seeds_half
            remark = "one training: no interval" if half is None else f"± {half:.3f} (95 %)"
            found.append(("Against its seeds", signed(text.minus_seeds, None), remark))
    if run.results is not None:
        share = run.results["tokens_changed"]
        found.append(("Tokens changed", percent(share), "of those that may be learned"))
    look = last_look(run)
    if look is not None and look["soft_to_text_gap"] is not None:
        gap = signed(look["soft_to_text_gap"], None)
        found.append(("Soft-to-text gap", gap, "development rows, nats per token"))
    return found


def warnings(run: Run, rungs: Sequence[Rung]) -> Iterator[tuple[str, str]]:
    """What a reader should mind: a few words, and a sentence or two."""
    results = run.results
    if results is not None and results["tokens_changed"] == 0:
        yield (
            "These rows are the seeds.",
            "No token was changed: whatever the rows do, choosing them did it.",
        )
    if run.learned is not None and run.learned.get("stopped"):
        yield "Learning ended early.", str(run.learned["stopped"])
    if lost := diverged(run):
        yield (
            "Training diverged.",
            f"Not every training of these rows came to a figure: {', '.join(lost.values())}.",
        )
    known = {rung.method: rung for rung in rungs}
    if {"text", "random"} <= known.keys() and not _below(known["text"], known["random"]):
        yield (
            "Random rows do as well.",
            f"Random draws of the same size reach {_figure(known['random'])}, the distilled text "
            f"{_figure(known['text'])} nats per token: no difference that chance could not make.",
        )
    text, seeds = known.get("text-shuffled"), known.get("seeds-shuffled")
    if text and seeds and _gained(known.get("text")) and not _below(text, seeds):
        yield (
            "Bound to their order.",
            f"Shuffled, the rows reach {_figure(text)} and their seeds {_figure(seeds)}: what was "
            "learned holds in the order of the file.",
        )
    few = [len(rung.values) for rung in rungs if rung.method in ("text", "seeds")]
    if few and min(few) < FEW_TRAININGS:
        count = min(few)
        yield (
            "One training a row." if count == 1 else f"Only {count} trainings a row.",
            "There is no interval: nothing can be said of chance."
            if count == 1
            else "The intervals are wide. They cover LoRA's initial values (and shuffles), not "
            "the choice of seed rows or of report rows.",
        )
    report = None if results is None else results["sizes"]["report"]
    if report is not None and report < FEW_REPORT_ROWS:
        yield (
            f"Only {report} report rows.",
            "Other report rows could put the ladder in another order.",
        )
    dropped = _dropped(run)
    if dropped:
        yield (
            "Rows were left out.",
            f"{dropped}: longer than {run.setting('data.max_tokens')} tokens, or nothing to learn "
            "in the response.",
        )
    skipped = sum(1 for row in run.metrics if row.get("skipped"))
    if skipped:
        yield (
            "Outer steps were skipped.",
            f"{skipped} of {len(run.metrics) - 1} gave no usable meta-gradient.",
        )
    if run.tuning is not None and "nll" in run.tuning:
        rates = [rate for rate, _ in run.tuning["nll"]]
        best = run.tuning["learning_rate"]
        if len(rates) > 1 and best in (min(rates), max(rates)):
            yield (
                "The learning rate lies at the edge.",
                f"The best of those tried, {best:g}, is the "
                f"{'smallest' if best == min(rates) else 'largest'}; one beyond it may be better.",
            )


def _gained(rung: Rung | None) -> bool:
    """Whether a row is below the seeds in the order they share, by more than its interval."""
    if rung is None or rung.minus_seeds is None:
        return False
    return rung.minus_seeds + (rung.minus_seeds_half or 0.0) < 0


def _below(rung: Rung, other: Rung) -> bool:
    """Whether the difference of two means is larger than their intervals together."""
    return other.mean - rung.mean > math.hypot(rung.half or 0.0, other.half or 0.0)


def _figure(rung: Rung) -> str:
    return f"{rung.mean:.3f}" + (f" \N{PLUS-MINUS SIGN} {rung.half:.3f}" if rung.half else "")


def _dropped(run: Run) -> str:
    """How many rows of each split were read and not used."""
    if run.results is None:
        return ""
    parts = []
    for name, text in run.provenance.get("data", {}).items():
        read, used = int(str(text).split()[0]), run.results["sizes"].get(name)
        if used is not None and used < read:
            parts.append(f"{number(read - used)} of {number(read)} {_SPLITS.get(name, name)} rows")
    return ", ".join(parts)


def overlap(run: Run) -> list[str]:
    """Overlap of training, target and report rows, in sentences."""
    found = run.overlap
    if found is None:
        return ["Not checked: this run was made before overlap was. Run its command again."]
    sentences = [
        _overlap_sentence("distilled rows", found, found["distilled"]),
        _overlap_sentence("training rows", found, found["train"]),
    ]
    if found.get("target", {}).get("overlapping"):
        sentences.append(_overlap_sentence("target rows", found, found["target"]))
    return sentences


def _overlap_sentence(what: str, found: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    runs = f"{found['words']} words in a row"
    report = f"{number(found['report_rows'])} report rows"
    if not part["overlapping"]:
        return f"None of the {number(part['rows'])} {what} shares {runs} with any of the {report}."
    source, other = (Path(name).name for name in part["shown"][0])
    return (
        f"{number(part['overlapping'])} of the {number(part['rows'])} {what} "
        f"share{'s' * (part['overlapping'] == 1)} {runs} (a shorter row: all of its words) with "
        f"{number(part['report_overlapping'])} of the {report}, the first of them {source} with "
        f"{other}. Figures on these report rows may be too good."
    )


def setup(run: Run) -> list[tuple[str, str]]:
    """Settings that a reader asks for, by name."""
    recipe = recipe_of(run)
    sizes = {} if run.results is None else run.results["sizes"]
    parts = [f"{number(count)} {_SPLITS.get(name, name)}" for name, count in sizes.items()]
    beta = run.setting("outer.beta", 0.0)
    rows = [
        ("Data", str(run.setting("data.data"))),
        ("Rows", ", ".join(parts)),
        ("Seed rows", f"{_chosen(run)}, seed {run.setting('seed')}"),
        ("Model", f"{run.setting('model.model')}, {run.setting('model.dtype')}"),
        (
            "LoRA",
            f"rank {run.setting('model.lora_rank')}, alpha {run.setting('model.lora_alpha'):g}, "
            f"on {' '.join(run.setting('model.lora_targets', []))}",
        ),
        ("Template", str(run.setting("data.template"))),
        ("Recipe", recipe_text(recipe)),
        ("Learned", f"{run.setting('outer.learn')}, {run.setting('outer.projection')} projection"),
        (
            "Outer steps",
            f"{run.setting('outer.outer_steps')}"
            + (
                f"; exported: step {run.learned['exported_step']}"
                if run.learned is not None and run.learned["exported_step"]
                else ""
            ),
        ),
        ("Meta-gradient", "" if run.doctor is None else str(run.doctor["engine"])),
        ("Neighbour term", f"beta {beta:g}" if beta else ""),
        ("Versions", ", ".join(f"{k} {v}" for k, v in run.provenance.get("versions", {}).items())),
        ("Begun", str(run.provenance.get("began", ""))),
    ]
    return [(name, value) for name, value in rows if value]


def _chosen(run: Run) -> str:
    method = run.setting("seeds_by", "random")
    return "drawn at random" if method == "random" else f"chosen by {method}"


def recipe_text(recipe: Recipe) -> str:
    """Optimiser, rate, length, batch and clipping in a line."""
    length = (
        f"{recipe.steps} steps"
        if recipe.steps
        else f"{recipe.epochs:g} epoch{'s' * (recipe.epochs != 1)}"
    )
    name = "AdamW" if recipe.optimizer == "adamw" else "SGD"
    return (
        f"{name}, learning rate {recipe.learning_rate:g} ({recipe.schedule}, warm-up "
        f"{percent(recipe.warmup, 0)}), {length}, {recipe.batch_size} rows a step, clipped at "
        f"{recipe.clip:g}"
    )
