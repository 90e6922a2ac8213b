"""The table of docs/how-to/gpu.md: `nacd plan` for models whose shapes stand here.

python benchmarks/plan_table.py            # a minute or two; nothing is loaded
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from transformers import LlamaConfig, OPTConfig, Qwen3Config

from nacd.config import ModelConfig
from nacd.config.commands import PlanConfig
from nacd.costs.planning import SURE, as_it_is
from nacd.terminal.units import byte_size

CARD = 24e9
MICRO = 512
QWEN3: dict[str, Any] = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
# fmt: off
SHAPES: dict[str, Any] = {
    "Qwen3-0.6B": Qwen3Config(**QWEN3, hidden_size=1024, intermediate_size=3072,
                              num_hidden_layers=28, num_attention_heads=16,
                              tie_word_embeddings=True),
    "Llama-3.2-1B": LlamaConfig(**LLAMA3, hidden_size=2048, intermediate_size=8192,
                                num_hidden_layers=16, tie_word_embeddings=True),
    "OPT-1.3B": OPTConfig(vocab_size=50272, hidden_size=2048, ffn_dim=8192, num_hidden_layers=24,
                          num_attention_heads=32, word_embed_proj_dim=2048),
    "Qwen3-4B": Qwen3Config(**QWEN3, hidden_size=2560, intermediate_size=9728,
                            num_hidden_layers=36, num_attention_heads=32,
                            tie_word_embeddings=True),
    "Llama-3.1-8B": LlamaConfig(**LLAMA3, hidden_size=4096, intermediate_size=14336,
                                num_hidden_layers=32, tie_word_embeddings=False),
}
# fmt: on
"""As their `config.json` has them."""
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"dtype": "bfloat16"},
    "4 bit": {"quantize": "4bit"},
    "4 bit, checkpointing": {"quantize": "4bit", "gradient_checkpointing": True},
}
HEAD = (
    f"| model | parameters | LoRA | {' | '.join(SETTINGS)} | on a card of 24 GB |\n"
    f"|---|{'---|' * (3 + len(SETTINGS))}"
)


def row(name: str) -> str:
    """A model's line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        SHAPES[name].save_pretrained(folder)
        found = {
            label: as_it_is(
                PlanConfig(model=ModelConfig(model=folder, micro_tokens=MICRO, **fields)),
                CARD,
                card=True,
            )
            for label, fields in SETTINGS.items()
        }
    one = found["float32"]
    fitting = next((label for label, each in found.items() if each.fits), "no")
    cells = [
        name,
        f"{one.parameters / 1e9:.2f} billion",
        f"{one.lora / 1e6:.1f} million",
        *(byte_size(each.memory) for each in found.values()),
        fitting,
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or the rows that are named."""
    names = sys.argv[1:] if arguments is None else arguments
    print(HEAD)
    for name in names or SHAPES:
        print(row(name), flush=True)
    print(f"\nFits: at most {SURE:.0%} of the card.", file=sys.stderr)


if __name__ == "__main__":
    main()
