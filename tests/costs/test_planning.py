"""What is planned of shapes alone is what a loaded model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nacd.cli import main
from nacd.config import ModelConfig, OuterLoopConfig
from nacd.config.commands import PlanConfig
from nacd.costs.planning import SURE, Plan, as_it_is, memory_of, plan
from nacd.errors import UserError
from nacd.meta import EngineName
from nacd.model.lora import load_model
from nacd.model.microbatch import part_bytes
from nacd.model.outline import Outline
from tiny import ARCHITECTURES, tiny_config

Folder = Callable[[str], Path]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_outline_is_the_loaded_model_without_its_numbers(
    arch: str, tiny_folder: Folder, tmp_path: Path
) -> None:
    tiny_config(arch).save_pretrained(tmp_path)  # no weights, and no tokenizer
    outline = Outline(ModelConfig(model=str(tmp_path)), card=False)
    model = load_model(ModelConfig(model=str(tiny_folder(arch)), device="cpu"))
    frozen = [p for p in model.hf.parameters() if not p.requires_grad]
    assert outline.weights == sum(p.numel() * p.element_size() for p in frozen)
    assert outline.size == model.size
    assert outline.width == model.width
    for training in (True, False):
        expected = part_bytes(model, training=training)(96)
        if not model.packs:  # it counts two rows, of which one is padded to three times its length
            expected /= 1.5
        assert outline.needed(96, training=training) == pytest.approx(expected, rel=0.15)


def test_a_mixture_of_experts_is_left_to_the_doctor(tmp_path: Path) -> None:
    tiny_config("mixtral").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot be laid out without its weights.*`nacd doctor`"):
        Outline(ModelConfig(model=str(tmp_path)), card=False)


@pytest.fixture
def shapes(tmp_path: Path) -> str:
    """A folder with the shapes of a small Llama, and no more."""
    config = tiny_config("llama")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 256, 704, 6
    config.vocab_size, config.head_dim = 2048, 64
    config.save_pretrained(tmp_path)
    return str(tmp_path)


def planned(model: str, card: str = "", engine: EngineName = "first-order", **of: Any) -> Plan:
    outer = OuterLoopConfig(engine=engine)
    config = ModelConfig(model=model, **of)
    return plan(PlanConfig(tokens=64, max_tokens=128, gpu_memory=card, model=config, outer=outer))


def test_the_flags_that_are_named_make_it_fit(shapes: str) -> None:
    roomy = planned(shapes, "1GB")
    assert roomy.fits
    assert not roomy.mend
    assert "It fits into 1 GB." in roomy.describe()
    sizes = [
        planned(shapes, "1GB", micro_tokens=512, gradient_checkpointing=on).memory for on in (0, 1)
    ]
    assert sizes[1] < 0.9 * sizes[0]
    tight = f"{sum(sizes) / 2 / SURE / 1e6:.0f}MB"
    short = planned(shapes, tight, micro_tokens=512)
    assert short.fits is False
    assert short.mend == "--gradient-checkpointing"
    assert f"does not fit into {tight[:-2]} MB; it does with" in short.describe()
    assert planned(shapes, tight, micro_tokens=512, gradient_checkpointing=True).fits
    hopeless = planned(shapes, "1MB")
    assert not hopeless.mend
    assert "take a smaller model or shorter rows" in hopeless.describe()


def test_what_takes_more_is_told_apart(shapes: str) -> None:
    plain = planned(shapes, "10GB")
    assert planned(shapes, "10GB", "exact").memory > plain.memory
    low = planned(shapes, "10GB", dtype="bfloat16")
    assert low.parts["weights, bfloat16"] == plain.parts["weights, float32"] / 2
    assert low.check > low.parts["weights, bfloat16"], "four rows in float32"
    assert "one matrix at a time" in low.describe()
    small = planned(shapes, "10GB", quantize="4bit")
    assert small.parts["weights, 4 bit"] < low.parts["weights, bfloat16"]
    assert max(map(len, low.describe().splitlines())) <= 80
    assert planned(shapes, micro_tokens=256).memory > planned(shapes, micro_tokens=128).memory


def test_gradients_that_a_card_is_short_for_are_in_the_hosts_memory(shapes: str) -> None:
    config = PlanConfig(tokens=64, max_tokens=128, model=ModelConfig(shapes, micro_tokens=64))
    roomy, tight = (as_it_is(config, room, card=True).parts for room in (1e10, 3e7))
    (name,) = tight.keys() - roomy.keys()
    assert name.startswith("the sweep over")
    assert name.endswith("gradients in the host's memory")
    assert 0 < tight[name] < roomy[name.split(", gradients")[0]]


def test_time_comes_of_a_speed_alone(shapes: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--model", shapes, "--rows", "200", "--tokens", "64", "--max-tokens", "64"]
    assert main([*command, "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert not steps["timed"]
    assert main([*command, "--tflops", "0.5", "--json"]) == 0
    timed = json.loads(capsys.readouterr().out)
    assert timed["timed"]
    # 4 operations a parameter and token: forward, and back to the inputs; 5 rows a batch
    flops = 4 * (timed["parameters"] + timed["lora"] - 2048 * 256) * 5 * 64
    for one, other in zip(steps["forecast"]["stages"], timed["forecast"]["stages"], strict=True):
        assert other["seconds"] == pytest.approx(one["seconds"] * flops / 0.5e12, rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--gpu-memory much", "--gpu-memory much: no size; give 24GB"),
        ("--rows 3", "--rows 3: must be at least 8"),
        ("--tokens 64 --max-tokens 32", "--max-tokens 32: must be at least 64"),
    ],
)
def test_what_cannot_be_planned_is_named(
    flags: str, said: str, shapes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", shapes, *flags.split()]) == 1
    assert said in capsys.readouterr().err


def test_sizes_are_read_as_they_are_written() -> None:
    assert memory_of("24GB") == memory_of("24") == memory_of("24 gb") == 24e9
    assert memory_of("1.5 GiB") == 1.5 * 2**30
    with pytest.raises(UserError, match="no size"):
        memory_of("GB")


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root / "benchmarks")
    table = import_module("plan_table")
    page = (root / "docs" / "how-to" / "gpu.md").read_text(encoding="utf-8")
    assert table.HEAD in page
    assert all(f"| {name} |" in page for name in table.SHAPES)
    assert table.row("Qwen3-0.6B") in page
