"""What a card does with NACD: time as ratios, shares of its own matrix rate, memory, outer steps.

    python benchmarks/gpu.py                            # every model and piece: an hour or so
    python benchmarks/gpu.py --models smollm2 --pieces engines sixteen
    python benchmarks/gpu.py --tiny                     # does it run? Shapes of nothing, the CPU

A piece is a handful of works on one model, takes less than ten minutes, and is kept as a JSON file
of its own: stopped, the same command goes on. `--minutes` begins no piece after that long. Models
but SmolLM2 are shapes with random weights, so nothing is downloaded.

A line has the time of a work (an inner step with its part of the sweep) as a multiple of the first
work of its piece, medians in one process; the operations that it needs over its time, as a share of
what one large matrix product reaches in the same run and format; outer steps an hour, of 14 inner
steps and an objective of 64 rows; peak memory by the allocator's own count; and the cosine of its
gradient to that of the piece's first work of its kind, an ordinary step or a meta-gradient.

`experiments/gpu.py` is another thing: whole runs of the method on real data, in pieces as well.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from metagradient import Padded
from peak import PeakMemory
from plan_table import SHAPES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from nacd.config import ModelConfig
from nacd.config.recipe import Recipe
from nacd.data import Batch
from nacd.errors import UserError
from nacd.meta import make_engine, meta_gradient
from nacd.meta.objectives import trajectory_objective
from nacd.model.functional import DTYPES
from nacd.model.lora import LoraModel, load_model, resolve_device
from nacd.model.quantized import own_products
from nacd.selection.method import forward_flops
from nacd.store.extras import installed
from nacd.store.files import write_json
from nacd.store.memory import is_out_of_memory
from nacd.terminal.units import byte_size
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state, step

Piece = Literal["engines", "sixteen", "checkpointing", "offload", "packed", "compiled", "4bit"]
Model = Literal["smollm2", "Llama-3.2-1B", "Llama-3.1-8B"]
INNER, OBJECTIVE, ROWS = 14, 64, 8
"""Inner steps of an outer step, rows of its objective, and rows a batch."""
PASSES = {"step": 2, "one-sided": 4, "first-order": 6, "exact": 6}
"""Forward passes' worth of operations of an inner step: a backward pass to activations is one, a
double backward two more."""
TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


@dataclass(frozen=True)
class Config:
    """Benchmark of a GPU."""

    models: tuple[Model, ...] = ("smollm2", "Llama-3.2-1B", "Llama-3.1-8B")
    pieces: tuple[Piece, ...] = (
        "engines",
        "sixteen",
        "checkpointing",
        "offload",
        "packed",
        "compiled",
        "4bit",
    )
    tokens: int = 128
    """Tokens of the longest row of a batch of eight."""
    steps: int = 4
    """Inner steps that are timed together."""
    repeats: int = 3
    """Timings, of which the median is shown; one more before them warms up."""
    minutes: float = 60.0
    """After which no piece is begun."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tiny: bool = False
    """Shapes of nothing, in place of every model."""
    out: Path = Path("runs/gpu-benchmark")
    """Folder of the pieces' files and of table.json."""


@dataclass(frozen=True)
class Case:
    """A work on a model."""

    label: str
    work: str
    """`step`, or an engine."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of `ModelConfig`, beside the model and the device."""
    how: str = ""
    """`tf32`, `away`, `packed`, `padded` or `compiled`."""


def both(label: str, works: tuple[str, ...], how: str = "", **fields: Any) -> list[Case]:
    """The same way of doing several works."""
    return [Case(f"{label}, {work}", work, fields, how) for work in works]


FINITE = ("step", "first-order")
CASES: dict[str, list[Case]] = {
    "engines": both("float32", ("step", "one-sided", "first-order", "exact")),
    "sixteen": [
        *both("float32", ("step", "first-order")),
        *both("TF32", ("step",), "tf32"),
        *both("bfloat16", ("step", "exact"), dtype="bfloat16"),
    ],
    "checkpointing": [*both("plain", FINITE), *both("again", FINITE, gradient_checkpointing=True)],
    "offload": [*both("on the device", ("one-sided",)), *both("off it", ("one-sided",), "away")],
    "packed": [*both("padded", FINITE, "padded"), *both("packed", FINITE, "packed")],
    "compiled": [*both("as it is", FINITE), *both("compiled", FINITE, "compiled")],
    "4bit": [
        *both("float32", FINITE),
        *both("4 bit, float32", FINITE, quantize="4bit"),
        *both("4 bit, bfloat16", ("step", "exact"), quantize="4bit", dtype="bfloat16"),
    ],
}


class NoTokenizer:
    """What a model without text is asked for."""

    bos_token_id = eos_token_id = pad_token_id = 0
    chat_template = None
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {"<pad>": 0}


class Rig:
    """A model, batches and a start that has trained for a step."""

    def __init__(self, config: Config, name: str, case: Case):
        own = ModelConfig(model=name, device=config.device, **case.fields)
        self.config, self.model = config, made(own, tiny=config.tiny)
        recipe = Recipe(learning_rate=1e-4, warmup=0.0, schedule="constant")
        self.loop = InnerLoop(self.model, recipe, 64)
        self.log_rate = torch.tensor(math.log(1e-4), device=self.model.device)
        self.whole = batches(config, self.model, ragged=False)
        self.ragged = batches(config, self.model, ragged=True)
        theta = self.model.fresh_theta(0)
        start = Start(theta, initial_state(recipe, theta))
        self.start, _ = self.loop.run(start, self.whole[:1], self.log_rate, None)
        self.compiled = False

    def run(self, case: Case) -> Callable[[], Tensor]:
        """The work; what it returns tells two ways of doing it apart."""
        chosen = self.ragged if case.how in ("padded", "packed") else self.whole
        if case.how == "padded":
            chosen = [Padded(**vars(batch)) for batch in chosen]
        if case.how == "compiled" and not self.compiled:
            for layer in self.model.hf.base_model.layers:
                layer.compile(backend="aot_eager" if self.config.tiny else "inductor")
            self.compiled = True
        vectors = torch.cat([self.model.embed(b.ids[b.slots >= 0]) for b in chosen]).float()
        objective = trajectory_objective(self.start.theta, self.start.theta.roll(1))

        def ordinary() -> Tensor:
            theta, state = self.start.theta, self.start.state
            for k, batch in enumerate(chosen, 1):
                _, slope, _ = self.model.value_and_grad(theta, batch)
                rate = self.loop.rate(self.log_rate, k)
                theta, state = step(self.loop.recipe, theta, state, slope, rate, k)
            return slope

        def meta() -> Tensor:
            common = (self.loop, self.start, chosen, self.log_rate, vectors, objective)
            engine = make_engine(case.work, 1e-2)  # pyright: ignore[reportArgumentType]
            return meta_gradient(*common, engine, away=case.how == "away").vectors

        return ordinary if case.work == "step" else meta

    def flops(self, case: Case) -> float:
        """Operations of an inner step on the tokens that are none of the padding."""
        chosen = self.ragged if case.how in ("padded", "packed") else self.whole
        passes = PASSES[case.work]
        if self.model.config.gradient_checkpointing:
            passes *= 1.5
        tokens = statistics.fmean(batch.tokens for batch in chosen)
        return passes * forward_flops(self.model, tokens)


def made(config: ModelConfig, *, tiny: bool) -> LoraModel:
    """SmolLM2, or a shape with random weights."""
    if config.model not in SHAPES and not tiny:
        return load_model(config)
    shape = TINY if tiny else SHAPES[config.model]
    dtype, device = DTYPES[config.dtype], resolve_device(config.device)
    torch.manual_seed(0)  # of every format the same weights
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).to(dtype)
    if config.quantize == "4bit":
        in_four_bits(hf, dtype, device)
        own_products(hf, dtype)
    return LoraModel(hf, NoTokenizer(), config)


def in_four_bits(hf: Any, dtype: torch.dtype, device: torch.device) -> None:
    """What transformers makes of a checkpoint as it reads one, of weights that are there."""
    import bitsandbytes

    for name, linear in [*hf.named_modules()]:
        if type(linear) is nn.Linear and linear is not hf.get_output_embeddings():
            shape = (linear.in_features, linear.out_features)
            small = bitsandbytes.nn.Linear4bit(
                *shape, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
            small.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4"
            )
            hf.set_submodule(name, small.to(device))
    hf.is_loaded_in_4bit = True


def batches(config: Config, model: LoraModel, *, ragged: bool) -> list[Batch]:
    """Random rows: the first half of each learnable, the rest labels; a batch an inner step."""
    generator = torch.Generator().manual_seed(0)
    shape, found = (ROWS, config.tokens), []
    lengths = torch.full((ROWS,), config.tokens)
    if ragged:  # rows are as long as a quarter to the whole of the longest: 62 % are tokens
        lengths = torch.linspace(config.tokens / 4, config.tokens, ROWS).round().long()
    where = torch.arange(config.tokens).expand(shape)
    attention = (where < lengths[:, None]).long()
    prompt = where < lengths[:, None] // 2
    for number in range(config.steps):
        ids = torch.randint(1, model.vocabulary, shape, generator=generator) * attention
        slots = torch.full(shape, -1)
        count = int(prompt.sum())
        slots[prompt] = torch.arange(count) + number * count
        response = attention.bool() & ~prompt
        found.append(Batch(ids, attention, response, slots).to(model.device))
    return found


# --- measuring --------------------------------------------------------------------------------


def wait(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, run: Callable[[], Any], repeats: int) -> float:
    """Median seconds, after one more run that warms up."""
    run()
    taken = []
    for _ in range(repeats):
        began = wait(device)
        run()
        taken.append(wait(device) - began)
    return statistics.median(taken)


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Float32 products in TF32, and in full afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rates(config: Config) -> dict[str, float]:
    """Operations a second of one large matrix product, by format."""
    device, size = resolve_device(config.device), 64 if config.tiny else 8192
    found = {}
    for name, dtype in (("float32", "float32"), ("tf32", "float32"), ("bfloat16", "bfloat16")):
        a = torch.randn(size, size, device=device).to(DTYPES[dtype])
        with tf32(name == "tf32"):
            found[name] = 2 * size**3 / timed(device, lambda a=a: a @ a, 2 * config.repeats)
    return found


def measured(config: Config, name: str, piece: str) -> dict[str, Any]:
    """Every case of a piece; one that does not fit, or cannot be, says so."""
    rows: list[dict[str, Any]] = []
    rig, fields = None, None
    results: dict[bool, Tensor] = {}
    for case in CASES[piece]:
        row: dict[str, Any] = {"label": case.label, "work": case.work}
        rows.append(row)
        try:
            if rig is None or case.fields != fields:
                rig = None
                gc.collect()
                rig, fields = Rig(config, name, case), case.fields
            device, memory = rig.model.device, PeakMemory(rig.model.device)
            with tf32(case.how == "tf32"), warnings.catch_warnings():
                # a compiler looks at a tensor that has no gradient of its own
                warnings.filterwarnings("ignore", r"The \.grad attribute", UserWarning)
                run = rig.run(case)
                found = run().float().flatten().cpu()
                seconds = timed(device, run, config.repeats) / config.steps
            row |= {"seconds": seconds, "peak": memory.read()["peak"], "micro": rig.model.micro}
            row |= {"flops": rig.flops(case), "dtype": rig.model.config.dtype}
            row["format"] = "tf32" if case.how == "tf32" else row["dtype"]
            reference = results.setdefault(case.work == "step", found)
            row["cosine"] = float(torch.cosine_similarity(found, reference, dim=0))
        except Exception as error:
            if not is_out_of_memory(error) and not isinstance(error, UserError):
                raise
            rig = None
            row["failed"] = str(error).splitlines()[0][:200]
    return {"model": name, "piece": piece, "rows": rows}


# --- the run ----------------------------------------------------------------------------------


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A piece's figures: read, or measured now and kept."""
    if not file.is_file():
        write_json(file, make())
    return json.loads(file.read_text())


def run(config: Config) -> list[dict[str, Any]]:
    """Measure what is not yet there, print the table, write it; its rows."""
    config.out.mkdir(parents=True, exist_ok=True)
    own = ("tokens", "steps", "repeats", "tiny", "device")
    setting = {key: value for key, value in asdict(config).items() if key in own}
    device = resolve_device(config.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    setting |= {"card": card, "torch": torch.__version__}
    before = kept(config.out / "setting.json", lambda: setting)
    if before != setting:
        raise UserError(f"--out {config.out}: holds figures of another setting; name another.")
    rate = kept(config.out / "rate.json", lambda: rates(config))
    began, rows = time.monotonic(), []
    for name in config.models:
        for piece in config.pieces:
            file = config.out / f"{name}-{piece}.json"
            late = time.monotonic() - began > 60 * config.minutes
            if not file.is_file() and (late or (piece == "4bit" and not installed("bitsandbytes"))):
                why = "--minutes are over" if late else "needs bitsandbytes"
                print(f"{name}, {piece}: left out ({why})")
                continue
            found = kept(file, lambda n=name, p=piece: measured(config, n, p))
            rows += [{"model": name, "piece": piece, **row} for row in told(found["rows"], rate)]
    write_json(config.out / "table.json", {"setting": setting, "rate": rate, "rows": rows})
    print(table(setting, rate, rows))
    return rows


def told(rows: list[dict[str, Any]], rate: dict[str, float]) -> list[dict[str, Any]]:
    """A piece's rows with what is worked out of their times."""
    first = next((row["seconds"] for row in rows if "seconds" in row), math.nan)
    found, ordinary = [], math.nan
    for row in rows:
        if "seconds" in row:
            row["ratio"] = row["seconds"] / first
            row["share"] = row["flops"] / row["seconds"] / rate[row["format"]]
            if row["work"] == "step":
                ordinary = row["seconds"]
            else:
                whole = INNER * row["seconds"] + OBJECTIVE / ROWS * ordinary
                row["outer_an_hour"] = None if math.isnan(whole) else 3600 / whole
        found.append(row)
    return found


def table(setting: dict[str, Any], rate: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """At 80 columns."""
    said = ", ".join(f"{name} {each / 1e12:.3g}" for name, each in rate.items())
    lines = [
        f"{setting['card']}, torch {setting['torch']}",
        f"a large matrix product, TFLOP/s: {said}",
        f"batches of {ROWS} x {setting['tokens']} tokens, median of {setting['repeats']}",
    ]
    place = None
    for row in rows:
        if place != (place := (row["model"], row["piece"])):
            head = f"{', '.join(place)}"
            lines += [
                "",
                f"{head:<32}{'time':>8}{'rate':>8}{'outer/h':>10}{'peak':>11}{'cosine':>9}",
            ]
        if "failed" in row:
            lines.append(f"  {row['label']:<30}failed: {row['failed'][:38]}")
            continue
        hour = row.get("outer_an_hour")
        lines.append(
            f"  {row['label']:<30}{row['ratio']:>7.2f}x{row['share']:>8.1%}"
            f"{'' if hour is None else f'{hour:,.0f}':>10}{byte_size(row['peak']):>11}"
            f"{row['cosine']:>9.4f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the flags and run."""
    config = tyro.cli(Config, args=arguments, description=__doc__)
    if config.tiny:
        config = replace(config, models=config.models[:1], tokens=16, steps=2, repeats=1)
    try:
        run(config)
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
