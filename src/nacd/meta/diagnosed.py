"""What a comparison of the engines found: figures, a verdict, and a refusal that names the mend."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from nacd.errors import UserError
from nacd.meta.engines import EngineName

COSINE = 0.98
"""An engine below this cosine to the reference is refused."""
LOW_COSINE = 0.95
"""The same of `exact` in a 16-bit format, whose length is not asked for: inner loops in two orders
agree at 0.5 at best, so that rounding of this size is lost in what an outer step averages."""
ERROR = 0.1
"""An engine above this relative error to a true reference is refused."""


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
        low = engine == "exact" and self.dtype in ("bfloat16", "float16")
        least = LOW_COSINE if low else COSINE
        if engine not in (None, "tesla") and own and max(r.agreement for r in own) < least:
            best = max(r.agreement for r in own)
            step = "" if eps is None else f" --fd-eps {eps:g}"
            raise UserError(
                f"--engine {engine}{step}: its meta-gradient has cosine {best:.2f} to "
                f"{self.reference}; use --engine {self.verdict.engine}."
            )


def _wrap(text: str, width: int = 80) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
