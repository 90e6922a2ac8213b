"""`nacd demo`: the whole pipeline, small, on a real model and real data, offline."""

from __future__ import annotations

from nacd.data import Example, mmlu_exemplars, split_by_hash
from nacd.demo_config import DemoConfig, demo_config
from nacd.distilling import Distilled, distill, print_result
from nacd.progress import Progress

MAX_WORDS = 32
"""Longest question and answer, in words: two cores have ten minutes."""


def words(example: Example) -> int:
    """Words of a row's question and answer."""
    return len(example.prompt.split()) + len(example.response.split())


def demo(config: DemoConfig, progress: Progress | None = None) -> Distilled:
    """Run the demo and print its table."""
    progress = progress or Progress()
    name = "SmolLM2-135M-Instruct" if config.model == "smollm2" else config.model
    progress.say(f"NACD demo: {name}, short MMLU exemplars in cloze form, 16 distilled rows.")
    examples = [e for e in mmlu_exemplars("cloze") if words(e) <= MAX_WORDS]
    splits = split_by_hash(examples, target=32, development=0.15, report=0.3)
    result = distill(demo_config(config), splits=splits, progress=progress)
    progress.say(
        "This was a small run on one draw of starting rows: it shows that the pipeline works, not "
        "that distilling pays. docs/results.md has the experiments."
    )
    print_result(result, progress)
    return result
