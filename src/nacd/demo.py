"""`nacd demo`: the whole pipeline, small, on a real model and real data, offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nacd.commands import Distilled, distill, print_result
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.data import Example, mmlu_exemplars, split_by_hash
from nacd.models import ModelConfig
from nacd.progress import Progress
from nacd.recipe import Recipe

MAX_WORDS = 32
"""Longest question and answer, in words: two cores have ten minutes."""


def words(example: Example) -> int:
    """Words of a row's question and answer."""
    return len(example.prompt.split()) + len(example.response.split())


@dataclass(frozen=True)
class DemoConfig:
    """A small distillation of the MMLU exemplars that lm-eval ships."""

    out: Path = Path("runs/demo")
    """Run folder; the same command again goes on where it stopped."""
    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    outer_steps: int = 6
    """Outer steps."""
    seed: int = 0
    """Seed of everything that is drawn."""


def demo_config(config: DemoConfig) -> DistillConfig:
    """The demo as the flags of `nacd distill`."""
    return DistillConfig(
        out=config.out,
        budget="16",
        seed=config.seed,
        draws=2,
        full_epochs=1.0,
        model=ModelConfig(model=config.model),
        data=DataConfig(
            data="MMLU exemplars (lm-eval)", template="qa", max_tokens=64, target_rows=32
        ),
        recipe=Recipe(batch_size=8, epochs=3.0, learning_rate=2e-3),
        outer=OuterLoopConfig(
            outer_steps=config.outer_steps,
            check_every=max(1, config.outer_steps // 2),
            engine="one-sided",
        ),
    )


def demo(config: DemoConfig, progress: Progress | None = None) -> Distilled:
    """Run the demo and print its table."""
    progress = progress or Progress()
    name = "SmolLM2-135M-Instruct" if config.model == "smollm2" else config.model
    progress.say(f"NACD demo: {name}, short MMLU exemplars in cloze form, 16 distilled rows.")
    examples = [e for e in mmlu_exemplars("cloze") if words(e) <= MAX_WORDS]
    splits = split_by_hash(examples, target=32, development=0.15, report=0.3)
    result = distill(demo_config(config), splits=splits, progress=progress)
    print_result(result, progress)
    progress.say(
        "This is a small run on one draw of seeds: it shows that the pipeline works, not that "
        "distilling pays. docs/results.md has the experiments."
    )
    return result
