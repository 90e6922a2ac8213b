"""What `nacd plan` says of the memory of a meta-gradient, beside what one takes.

    python benchmarks/plan.py                          # SmolLM2, the CPU, about a minute
    python benchmarks/plan.py --engine exact --rows 4
    python benchmarks/plan.py --engine exact --dtype bfloat16

The measurement is the peak resident set of a process that loads the model and computes one
meta-gradient through N inner steps, less what the process held before it loaded the model: Python
and its libraries. On CUDA it is torch's own count.
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from metagradient import Config as Settings
from metagradient import Setting
from peak import PeakMemory

from nacd.config import ModelConfig, OuterLoopConfig
from nacd.config.commands import PlanConfig
from nacd.config.recipe import Recipe
from nacd.costs.planning import Plan, plan
from nacd.errors import UserError
from nacd.meta import EngineName
from nacd.model.lora import resolve_device
from nacd.store.memory import resident
from nacd.terminal.units import byte_size


@dataclass(frozen=True)
class Config:
    """Benchmark of the plan."""

    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2`."""
    engine: EngineName = "first-order"
    """Which engine is run."""
    steps: int = 4
    """Inner steps N."""
    rows: int = 8
    """Rows a batch."""
    tokens: int = 48
    """Tokens a row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights."""
    gradient_checkpointing: bool = False
    out: Path = Path("runs/plan")
    """Folder for the start and the figures."""


def planned(config: Config) -> Plan:
    """What is planned for the same meta-gradient."""
    return plan(
        PlanConfig(
            rows=4 * config.rows * config.steps,
            tokens=config.tokens,
            max_tokens=config.tokens,
            budget=str(config.rows * config.steps),
            model=ModelConfig(
                model=config.model,
                dtype=config.dtype,
                gradient_checkpointing=config.gradient_checkpointing,
            ),
            recipe=Recipe(batch_size=config.rows, epochs=1),
            outer=OuterLoopConfig(engine=config.engine, pool=0, outer_steps=1),
        )
    )


def measured(config: Config) -> int:
    """Bytes of the model and one meta-gradient, at the peak."""
    cuda = resolve_device("auto").type == "cuda"
    before = resident()
    own = ("model", "rows", "tokens", "dtype", "gradient_checkpointing", "out")
    settings = Settings(**{name: getattr(config, name) for name in own}, pool=config.steps)
    config.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(settings, config.out, config.gradient_checkpointing)
    gc.collect()
    memory = PeakMemory(setting.model.device)
    setting.meta(config.engine, config.steps)
    peak = memory.read()["peak"]
    if peak is None or (before is None and not cuda):
        raise UserError("the peak of memory cannot be measured on this system.")
    return peak if cuda else peak - (before or 0)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print both, write `plan.json`."""
    config = tyro.cli(Config, args=arguments, description=__doc__)
    try:
        found = measured(config)
        expected = planned(config)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for name, size in expected.parts.items():
        print(f"  {name:<60}{byte_size(size):>11}")
    print(f"  {'planned':<60}{byte_size(expected.memory):>11}")
    print(f"  {'measured':<60}{byte_size(found):>11}")
    ratio = expected.memory / found
    print(f"  {'planned as a multiple of measured':<60}{ratio:>11.2f}")
    result = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
        "parts": expected.parts,
        "planned": expected.memory,
        "measured": found,
    }
    (config.out / "plan.json").write_text(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
