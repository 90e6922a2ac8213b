"""A run in plain words: what was distilled from what, with which recipe, and what to mind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nacd.comparison import cautions
from nacd.comparison.decision import called
from nacd.comparison.results import Result, diverged
from nacd.comparison.table import best_real
from nacd.config.recipe import recipe_of
from nacd.statistics.verdict import Difference, word
from nacd.store.folder import Run

Tile = tuple[str, str, str]
"""A figure at the top: name, value, remark."""


def number(value: float) -> str:
    """A count with thousands parted: `2,108`."""
    return f"{value:,.0f}"


def signed(value: float, half: float | None) -> str:
    """A difference and half its interval: `+0.001 ± 0.062`, with a true minus."""
    text = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    return text if half is None else f"{text} ± {half:.3f}"


def ends(held: Difference) -> str:
    """A difference's interval: `-0.08 to -0.02`, with true minuses."""
    return f"{held.low:+.3f} to {held.high:+.3f}".replace("-", "\N{MINUS SIGN}")


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


SPLITS = {"train": "training", "development": "validation", "report": "test"}


def verdict(run: Run) -> str:
    """The headline; a hyphen before a figure becomes a minus, and an interval stays beside it."""
    if run.results is not None:
        text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", str(run.results["verdict"]))
        return text.replace(" \N{PLUS-MINUS SIGN}", "\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}")
    return f"No verdict yet: this run has not ended ({run.state})."


def size(run: Run, table: Sequence[Result]) -> tuple[int, int | None, int | None]:
    """Distilled rows, their tokens, and the training rows they come from; None where unknown."""
    row = next((r for r in table if r.method in ("text", "seeds")), None)
    source = None if run.results is None else run.results["sizes"]["train"]
    if row is None:
        return len(run.dataset), None, source
    return row.rows, row.tokens, source


def lead(run: Run, table: Sequence[Result]) -> str:
    """What was distilled from what, with which recipe."""
    rows, tokens, source = size(run, table)
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
    changed = None if run.results is None else run.results["tokens_changed"]
    share = "" if changed is None else f", {percent(changed)} of whose learnable tokens changed,"
    return (
        f"{what} Responses are the starting rows' own; prompts{share} were learned on "
        f"{run.setting('model.model')} by {goal}, for a recipe of {steps}"
        f"{'AdamW' if recipe.optimizer == 'adamw' else 'SGD'} at learning rate "
        f"{recipe.learning_rate:g}, {recipe.batch_size} rows a step, "
        f"{'shuffled' if recipe.shuffle else 'in the order of the file'}."
    )


def against(name: str, held: Difference | None) -> Tile:
    """The tile of a difference: its figure, its interval, and what it comes to."""
    if held is None:
        return f"Against {name}", "not measured", ""
    if held.over_trainings is None:
        return f"Against {name}", signed(held.mean, None), "one training: no interval"
    said = {"too few": "too few trainings to tell"}.get(word(held), word(held))
    return f"Against {name}", signed(held.mean, None), f"{ends(held)}: {said}"


def saved(rows: int, of_rows: int | None, tokens: int | None, of_tokens: int | None) -> Tile:
    """The tile of what is trained on, and how much less that is than all rows."""
    value = number(rows) + (f" of {number(of_rows)}" if of_rows else "")
    remark = f"{number(tokens)} tokens" if tokens else ""
    if tokens and of_tokens and of_tokens > tokens:
        remark += f", {percent(1 - tokens / of_tokens, 0)} saved"
    elif of_rows and of_rows > rows:
        remark += f"{', ' * bool(remark)}{percent(1 - rows / of_rows, 0)} of the rows saved"
    return "Rows to train on", value, remark


def tiles(run: Run, table: Sequence[Result]) -> list[Tile]:
    """The few figures that stand at the top: against what, how much is saved, what it cost."""
    known = {row.method: row for row in table}
    found: list[Tile] = []
    if text := known.get("text"):
        best = best_real({method: row.mean for method, row in known.items()})
        real = "seeds" if best in ("", "random") else best
        found.append(against("random rows", text.minus.get("random")))
        what = "the best real rows: " if real == best else ""
        found.append(against(f"{what}{called(real)}", text.minus.get(real)))
    rows, tokens, source = size(run, table)
    if rows:
        full = known.get("full")
        found.append(saved(rows, source, tokens, full.tokens if full else None))
    if run.stages is not None:
        spent = {stage["name"]: stage["seconds"] for stage in run.stages["stages"]}
        measuring = sum(spent.get(name, 0.0) for name in ("measuring", TABLE))
        remark = "without its table" if measuring else "all stages together"
        found.append(("Distilling took", duration(sum(spent.values()) - measuring), remark))
    return found


TABLE = "training and measuring the table"
"""The stage after distilling."""


def warnings(run: Run, table: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """What a reader should mind: a few words, and a sentence or two."""
    results = run.results
    if results is not None and results["tokens_changed"] == 0:
        yield (
            "These rows are the starting rows.",
            "No token was changed: whatever the rows do, choosing them did it.",
        )
    if run.learned is not None and run.learned.get("stopped"):
        yield "Learning ended early.", str(run.learned["stopped"])
    if lost := diverged(run):
        yield (
            "Training diverged.",
            f"Not every training of these rows came to a figure: {', '.join(lost.values())}.",
        )
    known = {row.method: row for row in table}
    text, seeds = known.get("text-shuffled"), known.get("seeds-shuffled")
    if text and seeds and _better(known.get("text"), "seeds") and not _better(text, seeds.method):
        yield (
            "Bound to their order.",
            f"Shuffled, the rows reach {_figure(text)} and their starting rows {_figure(seeds)}: "
            "what was learned holds in the order of the file.",
        )
    shuffle = recipe_of(run).shuffle
    yield from cautions.of_order(known, shuffle)
    few = [len(row.values) for row in table if row.method in ("text", "seeds", "random")]
    if few:
        yield from cautions.of_trainings(min(few))
    if results is not None:
        yield from cautions.of_test_rows(results["sizes"]["report"])
    yield from cautions.of_model(str(run.setting("model.model")))
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


def _better(row: Result | None, rival: str) -> bool:
    held = None if row is None else row.minus.get(rival)
    return held is not None and word(held) == "better"


def _figure(row: Result) -> str:
    return f"{row.mean:.3f}" + (f" \N{PLUS-MINUS SIGN} {row.half:.3f}" if row.half else "")


def _dropped(run: Run) -> str:
    """How many rows of each split were read and not used."""
    if run.results is None:
        return ""
    parts = []
    for name, text in run.provenance.get("data", {}).items():
        read, used = int(str(text).split()[0]), run.results["sizes"].get(name)
        if used is not None and used < read:
            parts.append(f"{number(read - used)} of {number(read)} {SPLITS.get(name, name)} rows")
    return ", ".join(parts)


def overlap(run: Run) -> list[str]:
    """Overlap of training, target and test rows, in sentences."""
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
    report = f"{number(found['report_rows'])} test rows"
    if not part["overlapping"]:
        return f"None of the {number(part['rows'])} {what} shares {runs} with any of the {report}."
    source, other = (Path(name).name for name in part["shown"][0])
    return (
        f"{number(part['overlapping'])} of the {number(part['rows'])} {what} "
        f"share{'s' * (part['overlapping'] == 1)} {runs} (a shorter row: all of its words) with "
        f"{number(part['report_overlapping'])} of the {report}, the first of them {source} with "
        f"{other}. Figures on these test rows may be too good."
    )


def setup(run: Run) -> list[tuple[str, str]]:
    """Settings that a reader asks for, by name."""
    recipe = recipe_of(run)
    sizes = {} if run.results is None else run.results["sizes"]
    parts = [f"{number(count)} {SPLITS.get(name, name)}" for name, count in sizes.items()]
    beta = run.setting("outer.beta", 0.0)
    rows = [
        ("Data", str(run.setting("data.data"))),
        ("Rows", ", ".join(parts)),
        ("Starting rows", f"{_chosen(run)}, seed {run.setting('seed')}"),
        ("Model", f"{run.setting('model.model')}, {run.setting('model.dtype')}"),
        (
            "LoRA",
            f"rank {run.setting('model.lora_rank')}, alpha {run.setting('model.lora_alpha'):g}, "
            f"on {' '.join(run.setting('model.lora_targets', []))}",
        ),
        ("Template", str(run.setting("data.template"))),
        ("Recipe", recipe.describe()),
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
    method = run.setting("start_by", "random")
    return "drawn at random" if method == "random" else f"chosen by {method}"
