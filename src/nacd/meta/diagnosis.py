"""Which meta-gradient engine is right on this model, data and number format; what a run costs.

In: a loaded model, two real batches with slots, the vectors in them. Out: a `Diagnosis`. From a
slightly trained start (B is not 0, AdamW's moments are warm) the gradient in the vectors of
<lambda, theta_N>, lambda = grad l(theta; the other batch), is computed by several engines and held
against a reference, in relative error and cosine:

- `exact`, where attention and memory allow a double backward;
- in a 16-bit format, `exact` of the same weights in float32 (`nacd.model.upcast`). `exact` is right
  there as a rule, and a finite difference is noise (bergson issue 235): the short form tries one
  only where `exact` cannot be had.

Where nothing exact can be had, step lengths are held against each other.

Where activations have kinks (OPT's ReLU), `exact` and finite differences are two answers to two
questions: a double backward takes no notice of units that switch, a finite step does. They agree
only where few units switch within eps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data.batches import Batch
from nacd.meta import (
    Engine,
    EngineName,
    Exact,
    FirstOrder,
    MetaGradient,
    make_engine,
    meta_gradient,
)
from nacd.meta.diagnosed import COSINE, ERROR, LOW_COSINE, Diagnosis, Row, Verdict
from nacd.model.lora import LoraModel
from nacd.model.microbatch import part_bytes
from nacd.model.parts import DOUBLE
from nacd.model.upcast import in_float32
from nacd.store.memory import OutOfMemory, free_memory
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state

EPS = (1e-3, 1e-2, 3e-2, 1e-1)
"""Step lengths that the thorough form tries."""
SHORT_EPS = (2e-3, 1e-2)
"""Step lengths of the short form; the second only where nothing exact can be had."""
TRIALS = 2 + len(EPS)
"""Gradients of the thorough form: exact, every step length, one-sided."""
WARM = 4
EXPLODE = 1e3
"""A cotangent that grows by more than this factor in an inner step or two: no engine is right."""


@dataclass(frozen=True)
class Trial:
    """A model at a slightly trained start, with a cotangent to pull back."""

    loop: InnerLoop
    start: Start
    batches: Sequence[Batch]
    log_rate: Tensor
    vectors: Tensor
    cotangent: Tensor
    step_seconds: float

    def gradient(self, engine: Engine) -> tuple[MetaGradient, float]:
        """The meta-gradient, and seconds an inner step."""

        def objective(theta: Tensor) -> tuple[float, Tensor]:
            return float(self.cotangent @ theta), self.cotangent

        began = _now(self.loop.model)
        result = meta_gradient(
            self.loop,
            self.start,
            self.batches,
            self.log_rate,
            self.vectors,
            objective,
            engine,
        )
        return result, (_now(self.loop.model) - began) / len(self.batches)


def _now(model: LoraModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    elif model.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def warm_trial(
    model: LoraModel, recipe: Recipe, batches: Sequence[Batch], vectors: Tensor, thorough: bool
) -> Trial:
    """Train a few steps at the peak rate (the schedule's own first rate may be 0)."""
    steps = WARM if thorough else 1
    recipe = replace(recipe, warmup=0.0, schedule="constant")
    loop = InnerLoop(model, recipe, steps + len(batches))
    log_rate = torch.tensor(math.log(recipe.learning_rate), device=model.device)
    theta = model.fresh_theta(0)
    start = Start(theta, initial_state(recipe, theta))
    for i in range(steps):
        start, losses = loop.run(start, [batches[i % len(batches)]], log_rate, vectors)
        if not math.isfinite(losses[-1]):
            break
    began = _now(model)
    _, cotangent, _ = model.value_and_grad(start.theta, batches[-1], vectors)
    seconds = _now(model) - began
    inner = batches if thorough else batches[:1]
    return Trial(loop, start, inner, log_rate, vectors, cotangent, seconds)


def _compare(
    engine: EngineName,
    eps: float | None,
    found: MetaGradient,
    reference: MetaGradient,
    steps: float,
) -> Row:
    a, b = found.vectors.cpu().double().flatten(), reference.vectors.cpu().double().flatten()
    error = float((a - b).norm() / b.norm()) if float(b.norm()) > 0 else math.nan
    passed = _cosine(found.theta.cpu().double(), reference.theta.cpu().double())
    return Row(engine, eps, error, _cosine(a, b), passed, steps)


def _cosine(a: Tensor, b: Tensor) -> float:
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 0 else math.nan


def _exact(trial: Trial) -> tuple[tuple[MetaGradient, float] | None, str]:
    """The exact meta-gradient, or None and why it cannot be had."""
    model = trial.loop.model
    if model.config.gradient_checkpointing:
        return None, "a double backward does not go with gradient checkpointing"
    if model.config.shard:
        return None, "a double backward does not go with --shard"
    why = "a double backward does not fit in memory"
    free = free_memory(model.device)
    longest = max(batch.ids.shape[1] for batch in trial.batches)
    if free is not None and DOUBLE * part_bytes(model)(longest) > free:
        return None, why  # it might not raise an error, but be killed
    micro, on_less, model.on_less = model.micro, model.on_less, lambda micro: None
    try:
        return trial.gradient(Exact()), ""
    except OutOfMemory:
        pass
    except (RuntimeError, NotImplementedError) as error:
        if "derivative" not in str(error) and "backward" not in str(error).lower():
            raise
        why = f"{model.config.attention} attention has no double backward"
    finally:
        model.micro, model.on_less = micro, on_less
    return None, why


def diagnose(
    model: LoraModel,
    recipe: Recipe,
    batches: Sequence[Batch],
    vectors: Tensor,
    *,
    thorough: bool,
    asked: tuple[EngineName, float] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Diagnosis:
    """Compare the engines on the user's own model and rows.

    Args:
        model: the model; its LoRA is overwritten.
        recipe: the inner loop's.
        batches: two real batches, their slots pointing into `vectors`.
        vectors: embeddings at the slots, (Q, d).
        thorough: False: one inner step, one engine against one reference, the work of about nine
            ordinary training steps; in a 16-bit format two inner steps. True: N = 2, every engine
            and step length.
        asked: a finite-difference engine and its eps that are measured in any case.
        tick: told how many of `TRIALS` are done, in the thorough form.
    """
    low = model.config.low
    trial = warm_trial(model, recipe, batches, vectors, thorough or low)
    exact, why_not = _exact(trial)
    truth, reference = (exact[0] if exact else None), "exact"
    lengths = EPS if thorough else SHORT_EPS[: 1 if exact else 2]
    if low:
        truth, reference = _float32_truth(trial)
        done = exact and _right(_compare("exact", None, exact[0], truth, 0.0), True, low)
        lengths = EPS if thorough or not done else ()
    central = []
    for number, eps in enumerate(lengths, 1):
        tick(number)
        central.append((eps, *trial.gradient(FirstOrder(eps))))
    if truth is None:
        reference = f"first-order at the next eps ({why_not})"
        rows = _self_consistent(central, trial.step_seconds)
    else:
        rows = [
            _compare("first-order", eps, found, truth, seconds / trial.step_seconds)
            for eps, found, seconds in central
        ]
    tick(1 + len(lengths))
    if thorough:
        best = max(rows, key=lambda row: (row.agreement, -row.error))
        against = truth or next(found for eps, found, _ in central if eps == best.eps)
        one_sided, seconds = trial.gradient(FirstOrder(best.eps or SHORT_EPS[0], central=False))
        rows.append(
            _compare("one-sided", best.eps, one_sided, against, seconds / trial.step_seconds)
        )
    tick(2 + len(lengths))
    if asked is not None and not any((row.engine, row.eps) == asked for row in rows):
        against = truth or central[0][1]
        found, seconds = trial.gradient(make_engine(*asked))
        rows.append(_compare(*asked, found, against, seconds / trial.step_seconds))
    if exact is not None and truth is not None:
        rows.append(_compare("exact", None, exact[0], truth, exact[1] / trial.step_seconds))
    anchor = truth or central[0][1]
    growth = max(anchor.cotangent_norms) / (anchor.cotangent_norms[0] + 1e-30)
    verdict, reason = _judge(model, rows, growth, truth is not None, why_not)
    return Diagnosis(
        model=model.config.model,
        dtype=model.config.dtype,
        attention=model.config.attention,
        device=str(model.device),
        reference=reference,
        rows=tuple(rows),
        verdict=verdict,
        reason=reason,
        growth=growth,
        step_seconds=trial.step_seconds,
        no_double="" if exact is not None else why_not,
    )


def _float32_truth(trial: Trial) -> tuple[MetaGradient, str]:
    """The meta-gradient of the same weights in float32, at the same point, and how it was had."""
    with in_float32(trial.loop.model):
        found, _ = _exact(trial)
        if found is not None:
            return found[0], "exact in float32"
        return trial.gradient(FirstOrder(SHORT_EPS[0]))[0], "first-order in float32"


def _self_consistent(
    central: Sequence[tuple[float, MetaGradient, float]], step_seconds: float
) -> list[Row]:
    """Every step length against the next longer one; the longest against the next shorter."""
    rows = []
    for i, (eps, found, seconds) in enumerate(central):
        other = central[i + 1 if i + 1 < len(central) else i - 1][1]
        rows.append(_compare("first-order", eps, found, other, seconds / step_seconds))
    return rows


def _right(row: Row, true: bool, low: bool) -> bool:
    """Whether a row is near enough; against a true reference its length counts too."""
    if low and row.engine == "exact":
        return row.agreement >= LOW_COSINE
    return row.agreement >= COSINE and (not true or row.error <= ERROR)


def _judge(
    model: LoraModel, rows: Sequence[Row], growth: float, true: bool, why_not: str
) -> tuple[Verdict | None, str]:
    """The engine to use and why, or None and what mends it."""
    if not math.isfinite(growth) or growth > EXPLODE:
        return None, (
            f"the cotangent grows {growth:.3g}-fold in an inner step or two: the inner loop is too "
            "stiff for any meta-gradient. Lower --learning-rate."
        )
    low = model.config.low
    order = ("exact", "first-order", "one-sided")
    for engine in order if low else (*order[1:], order[0]):
        own = [row for row in rows if row.engine == engine and _right(row, true, low)]
        if not own:
            continue
        # a pair's two errors differ by their yardstick alone: of equals, the shorter eps is first
        best = min(own, key=lambda row: row.error if true else -row.agreement)
        if engine == "exact":
            others = max((r.cosine for r in rows if r.engine != "exact"), default=math.nan)
            said = f"finite differences have cosine {others:.2f}"
            if low:
                beside = "" if math.isnan(others) else f"; {said} at best"
                return Verdict(engine, None), (
                    f"cosine {best.agreement:.4f}, error {best.error:.1e} to the same weights in "
                    f"float32{beside}."
                )
            return Verdict(engine, None), (
                f"{said} to it at best (rounding, or activations with kinks)."
            )
        to = "the reference" if true else "its neighbour in eps"
        return Verdict(engine, best.eps), (
            f"cosine {best.cosine:.4f}, error {best.error:.1e} to {to}."
        )
    best = max(rows, key=lambda row: row.agreement)
    found = (
        f"the best of {len(rows)} has cosine {best.agreement:.2f} and error {best.error:.0%} where "
        f"{COSINE} and {ERROR:.0%} are needed"
    )
    if low:
        without = f" ({why_not})" if why_not else ""
        return None, (
            f"in {model.config.dtype} {found}{without}; rounding drowns the difference of "
            "gradients. Use --dtype float32; with --quantize 4bit it needs less memory."
        )
    if any(not math.isfinite(row.error) for row in rows):
        return None, (
            "the meta-gradient is not a number, or exactly 0: training does not depend on the "
            "learnable positions at this point. Check --learn and lower --learning-rate."
        )
    if model.config.gradient_checkpointing:
        return None, f"{found}, and {why_not}. Drop --gradient-checkpointing, and try `exact`."
    return None, f"{found}, and {why_not}. Use --attention eager, and try `exact`."
