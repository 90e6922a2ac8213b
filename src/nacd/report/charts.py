"""The page's charts as plotly figures: plain dictionaries, which the page's script draws.

A colour is a name like `$accent`; the script puts in the style sheet's own, so that one figure
serves light and dark. Numbers that are not finite become gaps: JSON has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nacd.files import finite
from nacd.report.folder import Run
from nacd.report.rungs import Rung

NATS = "nats per token"
POINTS = 600
"""Most points of a curve: more are not to be told apart on a screen, and swell the page."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    id: str
    title: str
    caption: str
    """One sentence under the title: what is drawn, and its unit."""
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 260
    """Pixels."""

    def figure(self) -> dict[str, Any]:
        """What plotly.js draws."""
        return {
            "id": self.id,
            "data": finite(self.data),
            "layout": finite(self.layout) | {"height": self.height},
        }


def thinned(points: Sequence[tuple[int, float | None]]) -> Sequence[tuple[int, float | None]]:
    """At most `POINTS` (and the last) of a curve's points, evenly taken; None leaves a gap."""
    every = math.ceil(len(points) / POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def ladder(rungs: Sequence[Rung]) -> Chart:
    """Report NLL of every method: its trainings as points, their mean, and its interval.

    A zero-shot figure far from the others would squeeze them: it stands at the edge as a number.
    """
    ends = [
        end
        for rung in rungs
        if rung.method != "zero-shot"
        for end in (*rung.values, rung.mean - (rung.half or 0.0), rung.mean + (rung.half or 0.0))
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = 0.08 * (high - low) or 0.05
    beyond = [r for r in rungs if r.method == "zero-shot" and ends and r.mean > high + 6 * room]
    inside = [rung for rung in rungs if rung not in beyond]
    if inside:
        low, high = min(low, *(r.mean for r in inside)), max(high, *(r.mean for r in inside))
    seeds = next((rung.mean for rung in rungs if rung.method == "seeds"), None)
    learned = [rung.method in ("text", "text-last", "text-shuffled", "soft") for rung in inside]
    colours = ["$accent" if own else "$baseline" for own in learned]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [value for rung in inside for value in rung.values if len(rung.values) > 1],
            "y": [rung.label for rung in inside for _ in rung.values if len(rung.values) > 1],
            "marker": {"symbol": "line-ns-open", "size": 9, "color": "$muted"},
            "opacity": 0.7,
            "hovertemplate": "one training: %{x:.3f}<extra></extra>",
        },
        *(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [rung.mean],
                "y": [rung.label],
                "marker": {"size": 10, "color": colour},
                "error_x": {
                    "type": "data",
                    "array": [rung.half or 0.0],
                    "visible": rung.half is not None,
                    "color": colour,
                    "thickness": 2,
                    "width": 0,
                },
                "hovertemplate": f"%{{y}}: %{{x:.3f}}{_half(rung.half)}<extra></extra>",
            }
            for rung, colour in zip(inside, colours, strict=True)
        ),
    ]
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": f"report NLL ({NATS})"},
            "range": [low - room, high + room],
            "tickformat": _ticks(high - low),
            "nticks": 6,
        },
        "yaxis": {
            "categoryorder": "array",
            "categoryarray": [rung.label for rung in reversed(rungs)],
            "range": [-0.6, len(rungs) - 0.4],
            "showgrid": False,
        },
        "shapes": []
        if seeds is None
        else [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": seeds,
                "x1": seeds,
                "y0": 0,
                "y1": 1,
                "line": {"color": "$baseline", "width": 1, "dash": "dot"},
                "layer": "below",
            }
        ],
        "annotations": [
            {
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
                "y": rung.label,
                "text": f"{rung.mean:.2f} →",
                "showarrow": False,
                "font": {"color": "$muted"},
            }
            for rung in beyond
        ],
    }
    return Chart(
        "ladder",
        "Report NLL by method",
        "Dots are means over trainings, bars their 95 % t-intervals, ticks the single trainings; "
        "the dotted line is the untouched seeds.",
        data,
        layout,
        height=96 + 34 * len(rungs),
    )


def _half(half: float | None) -> str:
    return " (one training)" if half is None else f" ± {half:.3f}"


def _ticks(span: float) -> str:
    """The same decimals at every tick of an axis of that length."""
    return ".1f" if span > 1.5 else ".2f" if span > 0.06 else ".3f"


def curves(run: Run) -> list[Chart]:
    """What the outer loop saw, over its steps; only what the metrics hold."""
    trajectory = run.setting("outer.objective") == "trajectory"
    judges = "other training" if run.setting("outer.objective") == "train-loss" else "target"
    cosine = run.setting("outer.metric") == "cosine"
    exported = None if run.learned is None else run.learned.get("exported_step")
    rate = [row["learning_rate"] for row in run.metrics if "learning_rate" in row]
    fixed = "It was kept fixed." if len(set(rate)) == 1 else "It was learned, too."
    shown = [
        _curve(
            run,
            "development",
            "Development loss",
            f"Response NLL on development rows after a training, {NATS}.",
            {"development_soft": "soft prompts", "development_text": "their text"},
            NATS,
            exported,
        ),
        _curve(
            run,
            "gap",
            "Soft-to-text gap",
            "What turning vectors into tokens costs: loss of the text minus loss of the soft "
            "prompts.",
            {"soft_to_text_gap": "gap"},
            NATS,
            exported,
        ),
        _curve(
            run,
            "objective",
            "Objective",
            "Distance to the expert's later snapshot, over its distance from the start."
            if trajectory
            else f"Loss on {judges} rows after the inner training, {NATS}.",
            {"objective": "objective"},
            "matching loss" if trajectory else NATS,
        ),
        _curve(
            run,
            "changed",
            "Tokens changed",
            "Share of the learnable tokens that are not the seeds' any more.",
            {"tokens_changed": "tokens changed"},
            "share of tokens",
            exported,
            percent=True,
        ),
        _curve(
            run,
            "neighbour",
            "Neighbour distance",
            "Mean over learned positions: "
            + ("one minus the cosine" if cosine else "squared distance over mean squared row norm")
            + ", to the nearest token's embedding.",
            {"neighbour_distance": "distance"},
            "1 - cosine" if cosine else "relative squared distance",
        ),
        _curve(
            run,
            "rate",
            "Learning rate",
            f"Of the student's training. {fixed}",
            {"learning_rate": "learning rate"},
            "peak learning rate",
        ),
    ]
    return [chart for chart in shown if chart is not None]


def _curve(
    run: Run,
    name: str,
    title: str,
    caption: str,
    keys: Mapping[str, str],
    unit: str,
    exported: int | None = None,
    percent: bool = False,
) -> Chart | None:
    """One small chart over outer steps; None where the metrics have nothing of it."""
    data = []
    for (key, label), colour in zip(
        keys.items(), ("$second", "$accent")[-len(keys) :], strict=True
    ):
        points = [(row["outer_step"], row[key]) for row in run.metrics if key in row]
        if all(value is None for _, value in points):
            continue
        points = thinned(points)
        number = ":.1%" if percent else ":.4~g"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(points) < 40 else "lines",
                "name": label,
                "x": [step for step, _ in points],
                "y": [value for _, value in points],
                "line": {"color": colour, "width": 2},
                "marker": {"color": colour, "size": 5},
                "cliponaxis": False,
                "hovertemplate": f"{label}, step %{{x}}: %{{y{number}}}<extra></extra>",
            }
        )
    if not data:
        return None
    values = [value for trace in data for value in trace["y"] if value is not None]
    span = max(values) - min(values) if values else 0.0
    flat = bool(values) and span <= 1e-9 * abs(max(values))
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "outer step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": unit}, "nticks": 5}
        | ({"tickformat": ".0%", "rangemode": "tozero"} if percent else {})
        | ({"tickformat": _ticks(span)} if unit == NATS else {})
        | ({"range": [0, 2 * values[0] or 1]} if flat else {}),
        "showlegend": len(data) > 1,
        "shapes": _vertical(exported) if exported else [],
        "annotations": _beside(exported, "exported", run.metrics[-1]["outer_step"])
        if exported
        else [],
    }
    return Chart(name, title, caption, data, layout)


def _vertical(x: float) -> list[dict[str, Any]]:
    line = {"color": "$muted", "width": 1, "dash": "dot"}
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1}
    return [{"type": "line", "xref": "x", "yref": "paper", **ends, "line": line, "layer": "below"}]


def _beside(x: float, text: str, last: float) -> list[dict[str, Any]]:
    """A word at the foot of a vertical line, on the side where there is room."""
    side = "left" if x < last / 2 else "right"
    place = {"x": x, "yref": "paper", "y": 0, "yanchor": "bottom", "xanchor": side}
    return [{**place, "text": text, "showarrow": False, "font": {"color": "$muted", "size": 11}}]
