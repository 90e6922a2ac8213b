"""The page of a check: what to do, the curve of random rows, every set tried, and what it cost."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from nacd.checking.plan import LABELLED
from nacd.config.recipe import Recipe
from nacd.config.settings import from_dict
from nacd.errors import UserError
from nacd.report.charts import NATS, Chart, Point, differences
from nacd.report.facts import duration, number, percent, signed
from nacd.store.run import settings

NONE = "not measured"
MOST = 8
"""Settings of the recipe that are shown."""


def check_context(folder: Path) -> dict[str, Any]:
    """Everything that the page of a check shows.

    Raises:
        UserError: the check has not ended.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise UserError(f"{folder}: this check has no result yet; run its command again.")
    found = json.loads(file.read_text(encoding="utf-8"))
    config = settings(folder)
    drawn, beside = curve(found), choices(found)
    return {
        "title": f"{folder.resolve().name}: NACD check",
        "name": folder.resolve().name,
        "headline": found["verdict"],
        "detail": found["detail"],
        "lead": _lead(found, config),
        "tiles": _tiles(found),
        "curve": drawn,
        "choices": beside,
        "table": found["table"],
        "budget": found["budget_rows"],
        "margin": found["margin"],
        "warnings": found["warnings"],
        "left_out": found["left_out"],
        "tuning": found["tuning"] and found["tuning"] | _tried(found["tuning"]["table"]),
        "recipe": _recipe(found["recipe"]),
        "costs": _costs(found["costs"]),
        "minutes": found["minutes"],
        "setup": _setup(found, config, folder),
        "command": shlex.join(
            ["nacd", "check", "--config", str(folder / "run.yaml"), "--out", f"{folder}-again"]
        ),
        "figures": [chart.figure() for chart in (beside, drawn) if chart],
    }


def _lead(found: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    sizes = found["sizes"]
    return (
        f"{number(sizes['training'])} training rows of {Path(config['data']['data']).name}, "
        f"trained on with {config['model']['model']} and measured on {number(sizes['test'])} test "
        "rows that nothing was chosen by. Test NLL is the mean negative log likelihood of a "
        "response token, in nats; lower is better."
    )


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The few figures that stand at the top: name, value, remark."""
    rows = {(row["set"], row["rows"]): row for row in found["table"]}
    budget, total = found["budget_rows"], found["total_rows"]
    tiles = []
    full = rows.get(("random", total))
    if full is not None:
        tiles.append(
            (f"All {number(total)} rows", *_against(full, f"against {number(budget)} random rows"))
        )
    else:
        tiles.append((f"All {number(total)} rows", NONE, "there was no time for it"))
    choices = [r for r in found["table"] if r["set"] not in ("zero-shot", "random", LABELLED)]
    if choices:
        best = min(choices, key=lambda row: row["nll"])
        tiles.append(
            (
                f"Best choice: {_short(best)}",
                *_against(best, f"against {number(budget)} random rows"),
            )
        )
    else:
        tiles.append(("Choices", NONE, "there was no time for one"))
    if (taught := rows.get((LABELLED, budget))) is not None:
        tiles.append(
            ("Soft labels", *_against(taught, f"against {number(budget)} random rows without"))
        )
    made = found["datasets"].get("dataset")
    if made:
        share = 1 - made["tokens"] / made["of_tokens"]
        tiles.append(
            (
                "Rows to train on",
                number(made["rows"]),
                f"{number(made['tokens'])} tokens, {percent(share, 0)} saved",
            )
        )
    tiles.append(("This check took", duration(60 * found["minutes"]), "trainings and choices"))
    return tiles


def _against(row: Mapping[str, Any], what: str) -> tuple[str, str]:
    """A row's difference from random rows, and its interval."""
    difference = row["minus_random"]
    if difference is None:
        return f"{row['nll']:.3f}", NATS
    text = signed(difference["mean"], None)
    if difference["low"] is None:
        return text, f"{what}; one training: no interval"
    return text, f"{what}; {interval(difference)}"


def interval(difference: Mapping[str, Any]) -> str:
    """`-0.08 to -0.02`, with true minuses."""
    text = f"{difference['low']:+.3f} to {difference['high']:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def unbroken(text: str) -> Markup:
    """A sentence as markup, escaped, in which a flag and its value stay on one line."""
    flags = r'<span class="flag">\g<0></span>'
    return Markup(re.sub(r"--[a-z-]+( \d+)?", flags, str(escape(text))))


def commands(text: str) -> Markup:
    """The same, with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(unbroken(text))))


def curve(found: Mapping[str, Any]) -> Chart | None:
    """Test NLL over the rows: random sets as a line, choices beside it; None: nothing trained.

    The model without training stands as a number above: it would squeeze the axis.
    """
    table = found["table"]
    random = [row for row in table if row["set"] == "random"]
    choices = [row for row in table if row["set"] not in ("random", "zero-shot")]
    if not random:
        return None
    data = [_trace("random rows", random, [row["rows"] for row in random], "$baseline", True)]
    colours = ("$accent", "$second", "$third")
    for place, row in enumerate(choices):
        x = row["rows"] * 1.12 ** (place + 1)  # beside each other, for the intervals to be seen
        data.append(_trace(_short(row), [row], [x], colours[place % 3], False))
    shown = sorted({row["rows"] for row in random})
    untrained = next((row["nll"] for row in table if row["set"] == "zero-shot"), None)
    far = [row["rows"] * 1.12 ** (len(choices) + 1) for row in random]
    ends = [e for row in (*random, *choices) for e in _ends(row)]
    room = 0.08 * (max(ends) - min(ends)) or 0.02
    layout: dict[str, Any] = {
        "xaxis": {
            "type": "log",
            "title": {"text": "rows trained on (log scale)"},
            "tickvals": shown,
            "ticktext": [number(n) for n in shown],
            "range": [math.log10(min(shown) / 1.25), math.log10(max(*far, max(shown)) * 1.05)],
        },
        "yaxis": {
            "title": {"text": f"test NLL ({NATS})"},
            "range": [min(ends) - room, max(ends) + room],
            "nticks": 6,
        },
        "showlegend": True,
    }
    if untrained is not None:
        layout["annotations"] = [
            {
                "xref": "paper", "yref": "paper", "x": 1, "y": 1, "xanchor": "right",
                "yanchor": "top", "showarrow": False, "font": {"color": "$muted"},
                "text": f"no training: {untrained:.2f}",
            }
        ]  # fmt: skip
    return Chart(
        "curve",
        "How the loss falls with the rows",
        "Dots are means over trainings, bars their 95 % intervals over trainings; choices stand "
        "beside the random rows of their size. Hollow: more passes might have been better.",
        data,
        layout,
        height=380,
    )


def choices(found: Mapping[str, Any]) -> Chart | None:
    """The choices, soft labels and all rows minus random rows; None: there is no choice."""
    rows = [row for row in found["table"] if row["minus_random"] and row["set"] != "zero-shot"]
    own = [row for row in rows if row["set"] != "random"]
    if not own:
        return None
    chosen = [row for row in own if row["set"] != LABELLED]
    best = min(chosen or own, key=lambda row: row["nll"])
    points = [Point(f"{number(found['budget_rows'])} random rows", 0.0, near=True)]
    for row in (*own, *(row for row in rows if row["rows"] == found["total_rows"])):
        held = row["minus_random"]
        name = _short(row) if row in own else f"all {number(row['rows'])}"
        points.append(Point(name, held["mean"], held["low"], held["high"], own=row is best,
                            near=row is best or row["set"] == LABELLED))  # fmt: skip
    return differences(points, "choices")


def _short(row: Mapping[str, Any]) -> str:
    """A choice's name, or what was added to random rows."""
    return "soft labels" if row["set"] == LABELLED else row["name"].rpartition(" by ")[2]


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    half = row["half"] or 0.0
    return row["nll"] - half, row["nll"] + half


def _trace(
    name: str, rows: Sequence[Mapping[str, Any]], x: Sequence[float], colour: str, line: bool
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if line else "markers",
        "name": name,
        "x": list(x),
        "y": [row["nll"] for row in rows],
        "error_y": {
            "type": "data",
            "array": [row["half"] or 0.0 for row in rows],
            "color": colour,
            "thickness": 2,
            "width": 0,
        },
        "line": {"color": colour, "width": 2},
        "marker": {
            "color": colour,
            "size": 9,
            "symbol": ["circle" if row["settled"] else "circle-open" for row in rows],
        },
        "hovertemplate": f"{name}: %{{y:.3f}}<extra></extra>",
        "cliponaxis": False,
    }


def _recipe(values: Mapping[str, Any]) -> str:
    return from_dict(Recipe, values, "results.json").describe()


def _tried(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best of the settings that were tried, and how many more there are."""
    return {"table": table[:MOST], "more": max(0, len(table) - MOST)}


def _costs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    longest = max((row["seconds"] for row in rows), default=0.0) or 1.0
    return [dict(row) | {"share": row["seconds"] / longest} for row in rows]


def _setup(
    found: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> list[tuple[str, str]]:
    """Settings that a reader asks for, by name."""
    provenance = folder / "provenance.json"
    known = json.loads(provenance.read_text(encoding="utf-8")) if provenance.is_file() else {}
    model = config["model"]
    rows = [
        ("Data", str(config["data"]["data"])),
        ("Rows", ", ".join(f"{number(n)} {name}" for name, n in found["sizes"].items())),
        ("Model", f"{model['model']}, {model['dtype']}"),
        ("LoRA", f"rank {model['lora_rank']}, on {' '.join(model['lora_targets'])}"),
        ("Template", str(found["template"]["name"])),
        ("Recipe", _recipe(found["recipe"])),
        ("Versions", ", ".join(f"{k} {v}" for k, v in known.get("versions", {}).items())),
        ("Begun", str(known.get("began", ""))),
    ]
    return [(name, value) for name, value in rows if value]
