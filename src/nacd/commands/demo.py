"""`nacd demo`: a check and a short distillation, on a real model and real data, offline."""

from __future__ import annotations

from textwrap import wrap

from nacd.checking.said import print_checked
from nacd.commands.check import Checked, check
from nacd.commands.distill import Distilled, distill, print_result
from nacd.config.demo import DemoConfig, check_config, distill_config
from nacd.data import Example, mmlu_exemplars, split_by_hash
from nacd.terminal.progress import Progress

MAX_WORDS = 32
"""Longest question and answer, in words: two cores have ten minutes."""


def words(example: Example) -> int:
    """Words of a row's question and answer."""
    return len(example.prompt.split()) + len(example.response.split())


def demo(config: DemoConfig, progress: Progress | None = None) -> tuple[Checked, Distilled]:
    """Check how many rows are needed, then distil to the budget by the same recipe; print both."""
    progress = progress or Progress()
    name = "SmolLM2-135M-Instruct" if config.model == "smollm2" else config.model
    examples = [e for e in mmlu_exemplars("cloze") if words(e) <= MAX_WORDS]
    splits = split_by_hash(examples, target=32, development=0.15, report=0.3)
    progress.say(
        f"NACD demo: {name} and {len(splits.train)} short MMLU exemplars to train on.\n"
        f"1 of 2: nacd check. Are {config.budget} of them enough? ({config.minutes:g} minutes)"
    )
    checked = check(check_config(config), splits=splits, progress=progress)
    print_checked(checked, progress.say)
    progress.say(f"\n2 of 2: nacd distill. {config.budget} rows learned by the same recipe.")
    distilled = distill(distill_config(config, checked.recipe), splits=splits, progress=progress)
    print_result(distilled, progress)
    progress.say("")
    last = (
        f"So much for {config.budget} rows: a small run, which shows how the tool works. What to "
        f"do with these rows, by the check: {checked.verdict}"
    )
    for line in wrap(last, 80):
        progress.say(line)
    if checked.dataset is not None:
        progress.say(f"Those rows and their recipe: {checked.dataset}")
    return checked, distilled
