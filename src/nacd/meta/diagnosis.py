"""Which meta-gradient engine is right on this model, data and number format; what a run costs.

In: a loaded model, two real batches with slots, the vectors in them. Out: a `Diagnosis`. From a
slightly trained start (B is not 0, AdamW's moments are warm) the gradient in the vectors of
<lambda, theta_N>, lambda = grad l(theta; the other batch), is computed by several engines and held
against a reference, in relative error and cosine:

- `exact`, where attention and memory allow a double backward;
- in a 16-bit format, `exact` on a float32 copy of the model (thorough), or nothing but the
  agreement between step lengths (short): a 16-bit finite difference may be noise (bergson issue
  235), and two step lengths do not share their noise.

Where activations have kinks (OPT's ReLU), `exact` and finite differences are two answers to two
questions: a double backward takes no notice of units that switch, a finite step does. They agree
only where few units switch within eps.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.data.batches import Batch
from nacd.errors import UserError
from nacd.meta import (
    Engine,
    EngineName,
    Exact,
    FirstOrder,
    MetaGradient,
    make_engine,
    meta_gradient,
)
from nacd.model.lora import DOUBLE, LoraModel, load_model
from nacd.model.microbatch import part_bytes
from nacd.store.memory import OutOfMemory, free_memory
from nacd.training.inner import InnerLoop, Start
from nacd.training.update import initial_state

COSINE = 0.98
"""An engine below this cosine to the reference is refused."""
ERROR = 0.1
"""An engine above this relative error to a true reference is refused."""
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
class Row:
    """One engine, compared."""

    engine: EngineName
    eps: float | None
    """Step length of the two first-order engines."""
    error: float
    """Relative error of the gradient in the vectors."""
    cosine: float
    """Cosine of that gradient to the reference's."""
    cotangent: float
    """Cosine of lambda_0, what is passed on to the step before."""
    steps: float
    """Time of one inner step, forward sweep included, in ordinary training steps."""

    @property
    def agreement(self) -> float:
        """The smaller of the two cosines; -1 where one is not a number."""
        both = (self.cosine, self.cotangent)
        return min(both) if all(math.isfinite(c) for c in both) else -1.0


@dataclass(frozen=True)
class Verdict:
    """The engine to use."""

    engine: EngineName
    eps: float | None
    """Step length, for the two first-order engines."""


@dataclass(frozen=True)
class Diagnosis:
    """What the comparison found."""

    model: str
    dtype: str
    attention: str
    device: str
    reference: str
    """What the rows are held against."""
    rows: tuple[Row, ...]
    verdict: Verdict | None
    """None: no engine is right here."""
    reason: str
    """Why, in a sentence or two; where there is no verdict, with the flag that mends it."""
    growth: float
    """Largest |lambda| of the sweep over |lambda_N|."""
    step_seconds: float
    """One ordinary training step."""
    no_double: str = ""
    """Why engines with a double backward cannot run here; empty: they can, or were not tried."""

    def describe(self) -> str:
        """The table and the verdict, at 80 columns."""
        lines = [
            f"{self.model}: {self.dtype}, {self.attention} attention, {self.device}",
            *_wrap(f"held against: {self.reference}"),
            "",
            f"{'engine':14}{'eps':>8}{'error':>11}{'cosine':>10}{'lambda':>10}{'steps':>9}",
            "-" * 62,
        ]
        for row in self.rows:
            eps = "-" if row.eps is None else f"{row.eps:g}"
            if row.engine == self.reference:
                figures = f"{'reference':>31}"
            else:
                figures = f"{row.error:11.1e}{row.cosine:10.4f}{row.cotangent:10.4f}"
            lines.append(f"{row.engine:14}{eps:>8}{figures}{row.steps:8.1f}x")
        lines += ["", *_wrap(self._sentence())]
        return "\n".join(lines)

    def _sentence(self) -> str:
        if self.verdict is None:
            return f"No engine is right here: {self.reason}"
        eps = "" if self.verdict.eps is None else f" --fd-eps {self.verdict.eps:g}"
        return (
            f"Use --engine {self.verdict.engine}{eps} --dtype {self.dtype} --attention "
            f"{self.attention}: {self.reason}"
        )

    def require(self, engine: EngineName | None = None, eps: float | None = None) -> None:
        """Refuse to go on where nothing is right.

        Args:
            engine: one that the user insists on, instead of any. `tesla` is an approximation by
                choice and passes wherever another engine is right.
            eps: its step length; None: any that was measured.

        Raises:
            UserError: no engine, or not that one; with the flag that mends it.
        """
        if self.verdict is None:
            raise UserError(f"meta-gradients cannot be trusted here: {self.reason}")
        if engine in ("exact", "tesla") and self.no_double:
            raise UserError(
                f"--engine {engine}: {self.no_double}; use --engine {self.verdict.engine}."
            )
        own = [row for row in self.rows if row.engine == engine and eps in (None, row.eps)]
        if engine not in (None, "tesla") and own and max(r.agreement for r in own) < COSINE:
            best = max(r.agreement for r in own)
            step = "" if eps is None else f" --fd-eps {eps:g}"
            raise UserError(
                f"--engine {engine}{step}: its meta-gradient has cosine {best:.2f} to "
                f"{self.reference}; use --engine {self.verdict.engine}."
            )


def _wrap(text: str, width: int = 80) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


# --- the comparison ---------------------------------------------------------------------------


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

    def on(self, model: LoraModel) -> Trial:
        """The same point and cotangent on another copy of the model."""
        return replace(self, loop=replace(self.loop, model=model))


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
            ordinary training steps. True: N = 2, every engine and step length; in a 16-bit format
            a float32 copy of the model is loaded beside it.
        asked: a finite-difference engine and its eps that are measured in any case.
        tick: told how many of `TRIALS` are done, in the thorough form.

    Raises:
        UserError: the model cannot be loaded in float32.
    """
    trial = warm_trial(model, recipe, batches, vectors, thorough)
    low = model.config.dtype in ("bfloat16", "float16")
    exact: tuple[MetaGradient, float] | None = None
    why_not = "16-bit rounding is in the double backward too"
    if thorough or not low:
        exact, why_not = _exact(trial)
    truth, reference = (exact[0] if exact else None), "exact"
    if low and thorough:
        truth, reference = _float32_truth(trial), "exact in float32"
        if truth is None:
            reference = "first-order in float32"
            truth = _float32_first_order(trial)
    lengths = EPS if thorough else SHORT_EPS[: 1 if truth is not None else 2]
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
    best = max(rows, key=lambda row: (row.agreement, -row.error))
    tick(1 + len(lengths))
    if thorough:
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
        no_double="" if exact is not None or low else why_not,
    )


def _float32_copy(model: LoraModel) -> LoraModel:
    attention = "sdpa" if model.config.attention == "flash_attention_2" else model.config.attention
    copy = load_model(replace(model.config, dtype="float32", attention=attention))
    copy.micro = model.micro
    return copy


def _float32_truth(trial: Trial) -> MetaGradient | None:
    """`exact` at the same point on a float32 copy; None where it cannot be had."""
    copy = _float32_copy(trial.loop.model)
    found, _ = _exact(trial.on(copy))
    return found[0] if found else None


def _float32_first_order(trial: Trial) -> MetaGradient:
    return trial.on(_float32_copy(trial.loop.model)).gradient(FirstOrder(SHORT_EPS[0]))[0]


def _self_consistent(
    central: Sequence[tuple[float, MetaGradient, float]], step_seconds: float
) -> list[Row]:
    """Every step length against the next longer one; the longest against the next shorter."""
    rows = []
    for i, (eps, found, seconds) in enumerate(central):
        other = central[i + 1 if i + 1 < len(central) else i - 1][1]
        rows.append(_compare("first-order", eps, found, other, seconds / step_seconds))
    return rows


def _right(row: Row, true: bool) -> bool:
    """Whether a row is near enough; against a true reference its length counts too."""
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
    for engine in ("first-order", "one-sided", "exact"):
        own = [row for row in rows if row.engine == engine and _right(row, true)]
        if not own:
            continue
        # a pair's two errors differ by their yardstick alone: of equals, the shorter eps is first
        best = min(own, key=lambda row: row.error if true else -row.agreement)
        if engine == "exact":
            others = max((r.cosine for r in rows if r.engine != "exact"), default=math.nan)
            return Verdict(engine, None), (
                f"finite differences have cosine {others:.2f} to it at best (rounding, or "
                "activations with kinks)."
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
    if model.config.dtype in ("bfloat16", "float16"):
        return None, (
            f"in {model.config.dtype} {found}; rounding drowns the difference of gradients. "
            "Use --dtype float32."
        )
    if any(not math.isfinite(row.error) for row in rows):
        return None, (
            "the meta-gradient is not a number, or exactly 0: training does not depend on the "
            "learnable positions at this point. Check --learn and lower --learning-rate."
        )
    if model.config.gradient_checkpointing:
        return None, f"{found}, and {why_not}. Drop --gradient-checkpointing, and try `exact`."
    return None, f"{found}, and {why_not}. Use --attention eager, and try `exact`."
