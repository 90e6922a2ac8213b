"""The expert trajectories of a run, and the segments of them that its outer steps match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nacd.distillation.segments import matched_steps, segment_generator
from nacd.report.charts import NATS, Chart, thinned
from nacd.store.folder import Run

COLOURS = ("$accent", "$second", "$third", "$baseline")


def matched(run: Run) -> list[tuple[int, int, int]]:
    """Distinct segments (expert, first step, goal's step) that the outer steps have matched.

    They are those of `nacd.distillation.segments.segment_maker`; without metrics, those that are planned.
    """
    if run.setting("outer.objective") != "trajectory" or not run.experts:
        return []
    steps = [[snapshot["step"] for snapshot in expert["snapshots"]] for expert in run.experts]
    planned = run.setting("outer.outer_steps", 0)
    taken = run.metrics[-1]["outer_step"] if run.metrics else planned
    count = taken * run.setting("outer.segments", 1)
    return sorted(
        {
            segment(
                number,
                steps,
                latest=run.setting("outer.expert_start", 0),
                ahead=run.setting("outer.expert_ahead", 0),
            )
            for number in range(count)
        }
    )


def segment(
    number: int, steps: Sequence[Sequence[int]], *, latest: int, ahead: int
) -> tuple[int, int, int]:
    """Expert, first step and goal's step of the segment of that number.

    Args:
        number: outer step times segments a step, plus the segment's place in it.
        steps: of every expert, the steps that have a snapshot.
        latest: latest step that a segment starts from.
        ahead: steps from start to goal; 0: to the expert's end.
    """
    expert = number % len(steps)
    return expert, *matched_steps(steps[expert], latest, ahead, segment_generator(number))


def chart(run: Run) -> Chart | None:
    """Losses along the experts, and the matched segments under them; None without an expert."""
    data: list[dict[str, Any]] = []
    for number, expert in enumerate(run.experts):
        colour = COLOURS[number % len(COLOURS)]
        data += _losses(number, expert["snapshots"], colour)
    if not data:
        return None
    segments = matched(run)
    for line, (number, first, goal) in enumerate(segments):
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [first, goal],
                "y": [line, line],
                "yaxis": "y2",
                "line": {"color": COLOURS[number % len(COLOURS)], "width": 3},
                "marker": {"size": 7, "symbol": ["circle-open", "circle"]},
                "showlegend": False,
                "cliponaxis": False,
                "hovertemplate": f"expert {number + 1}: step {first} to {goal}<extra></extra>",
            }
        )
    share = min(0.45, 0.06 + 0.05 * len(segments)) if segments else 0.0
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "expert step"}, "rangemode": "tozero", "anchor": "free"},
        "yaxis": {
            "title": {"text": NATS},
            "domain": [share + 0.06 * bool(segments), 1],
            "tickformat": ".2f",
        },
        "showlegend": sum("name" in trace for trace in data) > 1,
    }
    if segments:
        layout["yaxis2"] = {
            "domain": [0, share],
            "range": [len(segments) - 0.5, -0.5],
            "showticklabels": False,
            "showgrid": False,
            "title": {"text": "matched"},
        }
    held = any(s["held_out"] is not None for e in run.experts for s in e["snapshots"])
    caption = (
        "Held-out loss at the snapshots, over the loss of each step's own batch"
        if held
        else "Loss of each step's own batch (held-out loss was not recorded)"
    )
    return Chart(
        "trajectory",
        "Expert trajectories" if len(run.experts) > 1 else "Expert trajectory",
        f"{caption}, {NATS}."
        + (" Below, the segments that are matched, from start (ring) to goal." * bool(segments)),
        data,
        layout,
        height=300 + 12 * len(segments),
    )


def _losses(number: int, snapshots: Sequence[dict[str, Any]], colour: str) -> list[dict[str, Any]]:
    """Two curves of one expert: its own batches' losses, and held-out ones at the snapshots.

    The losses kept with a snapshot are those of the steps that led to it.
    """
    name = f"expert {number + 1}"
    ends = [snapshot["step"] for snapshot in snapshots]
    steps = [
        step
        for end, snapshot in zip(ends, snapshots, strict=True)
        for step in range(end - len(snapshot["losses"]) + 1, end + 1)
    ]
    losses = [loss for snapshot in snapshots for loss in snapshot["losses"]]
    batches = thinned(list(zip(steps, losses, strict=True)))
    held = thinned([(s["step"], s["held_out"]) for s in snapshots if s["held_out"] is not None])
    curves = []
    if batches:
        curves.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name}, batches",
                "x": [step for step, _ in batches],
                "y": [loss for _, loss in batches],
                "line": {"color": colour, "width": 1},
                "opacity": 0.55 if held else 1.0,
                "hovertemplate": f"{name}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            }
        )
    if held:
        curves.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{name}, held out",
                "x": [step for step, _ in held],
                "y": [loss for _, loss in held],
                "line": {"color": colour, "width": 2},
                "marker": {"color": colour, "size": 6},
                "cliponaxis": False,
                "hovertemplate": f"{name}, held out, step %{{x}}: %{{y:.3f}}<extra></extra>",
            }
        )
    return curves


def describe(segments: Sequence[tuple[int, int, int]], experts: int) -> str:
    """The segments matched, in one sentence."""
    if not segments:
        return ""
    starts = sorted({first for _, first, _ in segments})
    lengths = sorted({goal - first for _, first, goal in segments})
    return (
        f"{len(segments)} segment{'s' * (len(segments) != 1)} of {experts} "
        f"expert{'s' * (experts != 1)}, starting at step {_span(starts)}, "
        f"{_span(lengths)} expert steps long."
    )


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
