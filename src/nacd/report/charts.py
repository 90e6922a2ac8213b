"""The page's charts as plotly figures: plain dictionaries, which the page's script draws.

A colour is a name like `$accent`; the script puts in the style sheet's own, so that one figure
serves light and dark. Numbers that are not finite become gaps: JSON has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nacd.comparison.results import Result
from nacd.store.files import finite
from nacd.store.folder import Run

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


@dataclass(frozen=True)
class Point:
    """A set of rows in the chart of differences."""

    label: str
    mean: float
    """Its figure minus the reference's; 0 for the reference."""
    low: float | None = None
    """The interval's ends; None: there is none."""
    high: float | None = None
    singles: tuple[float, ...] = ()
    """The same of every training."""
    own: bool = False
    """Whether it is what the page is about."""
    near: bool = False
    """Whether the axis is made for it: sets far off it stand at the edge as numbers."""


def table(rows: Sequence[Result], best: str = "") -> Chart | None:
    """Every row of the results table minus random rows, or else minus the starting rows.

    Args:
        rows: the rows; the model without training is left to the table.
        best: the best real choice of rows.

    Returns:
        None where there is nothing to hold a row against.
    """
    known = {row.method: row for row in rows if row.method != "zero-shot"}
    reference = next((m for m in ("random", "seeds", *known) if m in known), "")
    near = {"random", "seeds", "seeds-shuffled", "text", "text-shuffled", best}
    points = [Point(known[reference].label, 0.0, near=True)] if reference else []
    for method, row in known.items():
        held = row.minus.get(reference)
        if held is None:
            continue
        ends = (None, None) if held.over_trainings is None else (held.low, held.high)
        own = method in ("text", "text-last", "text-shuffled", "soft")
        points.append(Point(row.label, held.mean, *ends, row.singles, own, method in near))
    return differences(points) if len(points) > 1 else None


def differences(points: Sequence[Point], id: str = "results") -> Chart:
    """Differences from the first of the points, on an axis made for those that are near it.

    The axis is at most five times as long as what lies between their means, so that these are to be
    told apart whatever the intervals; bars that are longer run off it.
    """
    reference = points[0].label
    means = [0.0, *(p.mean for p in points if p.near)]
    reach = 2 * max(max(means) - min(means), 0.005)
    lowest, highest = min(means) - reach, max(means) + reach
    ends = [e for p in points if p.near for e in (p.low, p.high, *p.singles) if e is not None]
    ends = [min(max(end, lowest), highest) for end in ends] + means
    ends += [p.mean for p in points if lowest <= p.mean <= highest]
    room = 0.06 * (max(ends) - min(ends)) or 0.005
    low, high = min(ends) - room, max(ends) + room
    inside = [p for p in points if low <= p.mean <= high]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [value for p in inside for value in p.singles if len(p.singles) > 1],
            "y": [p.label for p in inside for _ in p.singles if len(p.singles) > 1],
            "marker": {"symbol": "line-ns-open", "size": 9, "color": "$muted"},
            "opacity": 0.7,
            "hovertemplate": "one training: %{x:+.3f}<extra></extra>",
        },
        *map(_dot, inside),
    ]
    zero = {"x0": 0, "x1": 0, "y0": 0, "y1": 1, "xref": "x", "yref": "paper", "layer": "below"}
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": NATS},
            "range": [low, high],
            "tickformat": "+" + _ticks(high - low),
            "nticks": 6,
        },
        "yaxis": {
            "categoryorder": "array",
            "categoryarray": [p.label for p in reversed(points)],
            "range": [-0.6, len(points) - 0.4],
            "showgrid": False,
        },
        "shapes": [
            zero | {"type": "line", "line": {"color": "$baseline", "width": 1, "dash": "dot"}}
        ],
        "annotations": [_at_the_edge(p, right=p.mean > high) for p in points if p not in inside],
    }
    return Chart(
        id,
        f"Test NLL minus that of {reference}",
        "Further left is better. Dots are means over trainings, bars their 95 % intervals"
        + ", ticks the single trainings" * any(len(p.singles) > 1 for p in inside)
        + "; what lies far off stands at the edge as a number.",
        data,
        layout,
        height=86 + 34 * len(points),
    )


def _dot(point: Point) -> dict[str, Any]:
    colour = "$accent" if point.own else "$baseline"
    low, high = (point.mean, point.mean) if point.low is None else (point.low, point.high)
    interval = "" if point.low is None else f" ({low:+.3f} to {high:+.3f})"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [point.mean],
        "y": [point.label],
        "marker": {"size": 10, "color": colour},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [(high or 0.0) - point.mean],
            "arrayminus": [point.mean - low],
            "visible": point.low is not None,
            "color": colour,
            "thickness": 2,
            "width": 0,
        },
        "hovertemplate": f"%{{y}}: %{{x:+.3f}}{interval}<extra></extra>",
    }


def _at_the_edge(point: Point, right: bool) -> dict[str, Any]:
    figure = f"{point.mean:+.3f}".replace("-", "\N{MINUS SIGN}")
    return {
        "xref": "paper",
        "x": 1 if right else 0,
        "xanchor": "right" if right else "left",
        "y": point.label,
        "text": f"{figure} →" if right else f"\N{NO-BREAK SPACE}← {figure}",
        "showarrow": False,
        "font": {"color": "$muted"},
    }


def _ticks(span: float) -> str:
    """The same decimals at every tick of an axis of that length."""
    return ".1f" if span > 1.5 else ".2f" if span > 0.06 else ".3f"


def curves(run: Run) -> list[Chart]:
    """What the outer loop saw, over its steps; only what the metrics hold."""
    trajectory = run.setting("outer.objective") == "trajectory"
    judges = "other training" if run.setting("outer.objective") == "train-loss" else "target"
    cosine = run.setting("outer.metric") == "cosine"
    exported = None if run.learned is None else run.learned.get("exported_step")
    shown = [
        _curve(
            run,
            "validation",
            "Validation loss",
            f"Response NLL on validation rows after a training, {NATS}.",
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
            "Share of the learnable tokens that are not the starting rows' any more.",
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
            "Of the student's training: it was learned, too.",
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
    """One small chart over outer steps; None where the metrics have nothing but a constant."""
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
    curves = [[value for value in trace["y"] if value is not None] for trace in data]
    if all(max(own) - min(own) <= 1e-9 * abs(max(own)) for own in curves):
        return None  # a constant is no curve
    span = max(map(max, curves)) - min(map(min, curves))
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "outer step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": unit}, "nticks": 5}
        | ({"tickformat": ".0%", "rangemode": "tozero"} if percent else {})
        | ({"tickformat": _ticks(span)} if unit == NATS else {}),
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
