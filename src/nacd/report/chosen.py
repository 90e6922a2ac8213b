"""The page of chosen rows: which, by what, from how many, and their text; and what is kept for it.

about_rows.json     lengths of the chosen rows and of all, in bins; rows of each group
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from nacd.comparison.decision import LABELS
from nacd.data.stored import lengths
from nacd.errors import UserError
from nacd.report import facts
from nacd.report.charts import Chart
from nacd.report.rows import within_room, written
from nacd.store.files import read_json, read_json_lines, write_json
from nacd.store.folder import read_selection
from nacd.terminal.units import operations

if TYPE_CHECKING:
    from nacd.model.prepare import Prepared

BINS = 20
"""Most bins of the lengths."""
GROUPS = 20
"""Most groups that are named; the smallest are taken together."""


def record_chosen(folder: Path, prepared: Prepared, rows: Sequence[int]) -> None:
    """Keep how the chosen rows lie among all of them.

    Args:
        folder: the run folder.
        prepared: the training rows.
        rows: indices of those chosen.
    """
    tokens = lengths(prepared.train.rows)
    width = max(1, -(-int(tokens.max()) // BINS))
    bins = int(tokens.max()) // width + 1
    binned = [np.bincount(own // width, minlength=bins) for own in (tokens, tokens[[*rows]])]
    groups = Counter(example.group for example in prepared.train.examples)
    own = Counter(prepared.train.examples[i].group for i in rows)
    write_json(
        folder / "about_rows.json",
        {
            "of": len(tokens),
            "of_tokens": int(tokens.sum(dtype=np.int64)),
            "width": width,
            "lengths": [count.tolist() for count in binned],
            "groups": [[name, own[name], count] for name, count in groups.most_common() if name],
        },
    )


def headline(results: Mapping[str, Any], config: Mapping[str, Any], of: int) -> str:
    """What to do with the chosen rows: nothing has been trained on them yet."""
    method, rows = str(config["method"]), len(results["rows"])
    if method == "random":
        return (
            f"Train on these {rows:,} random rows of {of:,}: whether a choice, or more rows, would "
            f"do better has not been measured (`nacd check --budget {rows}` on the same data does)."
        )
    return (
        f"Compare before you train: whether these {rows:,} of {of:,} rows, chosen by "
        f"{LABELS.get(method, method)}, beat random rows has not been measured (`nacd check "
        f"--budget {rows} --methods {method}` on the same data does)."
    )


def chosen_headline(folder: Path) -> str:
    """The headline of a run folder whose rows are chosen."""
    config, results = read_selection(folder)
    assert results is not None
    return headline(results, config, results["sizes"]["train"])


def chosen_lines(folder: Path) -> list[str]:
    """The end of `nacd select` on a terminal: its figures, its files, and what to do."""
    results = read_json(folder / "results.json")
    return [
        *(f"{label}: {value}" for label, value in measured(results)),
        f"{len(results['rows'])} rows: {folder / 'dataset' / 'train.jsonl'}",
        f"report: {folder / 'report.html'}",
        *wrap(chosen_headline(folder).replace("`", ""), 80),
    ]


def chosen_context(folder: Path) -> dict[str, Any]:
    """Everything that the page of chosen rows shows.

    Raises:
        UserError: nothing is chosen yet.
    """
    config, results = read_selection(folder)
    if results is None:
        raise UserError(f"{folder}: no rows are chosen yet; run its `nacd select` command again.")
    file = folder / "about_rows.json"
    about = read_json(file) if file.is_file() else {}
    rows, left_out = within_room(chosen_rows(folder))
    chart = _lengths(about)
    name = folder.resolve().name
    return {
        "title": f"{name}: rows chosen by NACD",
        "name": name,
        "headline": chosen_headline(folder),
        "lead": _lead(results, config),
        "tiles": _tiles(results, about),
        "measured": measured(results),
        "lengths": chart,
        "groups": _groups(about),
        "rows": rows,
        "rows_left_out": left_out,
        "scored": any(row["score"] is not None for row in rows),
        "setup": _setup(results, config, folder),
        "command": shlex.join(
            ["nacd", "select", "--config", str(folder / "run.yaml"), "--out", f"{folder}-again"]
        ),
        "figures": [chart.figure()] if chart else [],
    }


def measured(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A method's own figures: label and value of each, where it keeps any."""
    pairs = (p.values() if isinstance(p, Mapping) else p for p in results.get("measured", []))
    return [(str(label), str(value)) for label, value in pairs]


def chosen_rows(folder: Path, part: str = "dataset") -> list[dict[str, Any]]:
    """The rows of a data set of real rows, best first.

    A row has `number`, `source`, `prompt`, `response`, `tokens` and `score` (None where they are
    not known), and `bytes`, its size on a page.

    Args:
        folder: the run folder of `nacd select` or `nacd check`.
        part: the data set in it.
    """
    results = read_json(folder / "results.json")
    known = results["rows"] if isinstance(results.get("rows"), list) else []
    found = []
    for place, row in enumerate(read_json_lines(folder / part / "train.jsonl")):
        about = known[place] if place < len(known) else {}
        found.append(
            written(row)
            | {
                "number": place + 1,
                "tokens": about.get("tokens"),
                "score": about.get("score"),
            }
        )
    return found


def _lead(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    from nacd.selection import METHODS

    method = str(config["method"])
    entry = METHODS.get(method)
    about = f"{entry.about[0].upper()}{entry.about[1:]}. " if entry else ""
    in_order = entry is not None and entry.orders
    return (
        f"{about}Real rows of {Path(str(config['data']['data'])).name}, word for word, "
        f"{'in the order of the draw' if in_order else 'best first'}; nothing in them was learned, "
        "written or changed."
    )


def _tiles(results: Mapping[str, Any], about: Mapping[str, Any]) -> list[facts.Tile]:
    rows, of = len(results["rows"]), results["sizes"]["train"]
    work = operations(results["flops"]) if results["flops"] else "no model was asked"
    return [
        ("Against random rows", "not measured", "nothing has been trained on them"),
        facts.saved(rows, of, results["tokens"], about.get("of_tokens")),
        ("Mean length", f"{results['tokens'] / rows:.0f} tokens", _mean(about)),
        ("Choosing took", facts.duration(results["seconds"]), work),
    ]


def _mean(about: Mapping[str, Any]) -> str:
    return f"all rows: {about['of_tokens'] / about['of']:.0f}" if about else ""


def _lengths(about: Mapping[str, Any]) -> Chart | None:
    """How long the chosen rows are, beside all rows: shares of either by bins of tokens."""
    if not about:
        return None
    width, (everything, own) = about["width"], about["lengths"]
    starts = [place * width for place in range(len(everything))]
    names = [f"{start} to {start + width - 1} tokens" for start in starts]
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [start + width / 2 for start in starts],
            "y": [count / sum(counts) for count in counts],
            "customdata": names,
            "marker": {"color": colour},
            "hovertemplate": f"{name}, %{{customdata}}: %{{y:.1%}}<extra></extra>",
        }
        for name, counts, colour in (
            ("all training rows", everything, "$baseline"),
            ("chosen rows", own, "$accent"),
        )
    ]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "tokens of a row"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "share of the rows"}, "tickformat": ".0%", "nticks": 5},
        "showlegend": True,
        "bargap": 0.15,
        "bargroupgap": 0.05,
    }
    caption = "Share of the rows by their tokens, prompt and response together."
    return Chart("lengths", "How long the rows are", caption, data, layout, height=280)


def _groups(about: Mapping[str, Any]) -> list[tuple[str, int, float, int, float]]:
    """Rows of each group and their shares: name, chosen, share, of all, share."""
    groups = about.get("groups", [])
    if len(groups) > GROUPS:
        rest = groups[GROUPS - 1 :]
        together = [f"{len(rest)} others", sum(g[1] for g in rest), sum(g[2] for g in rest)]
        groups = [*groups[: GROUPS - 1], together]
    own, everything = (sum(group[place] for group in groups) or 1 for place in (1, 2))
    return [(name, n, n / own, of, of / everything) for name, n, of in groups]


def _setup(
    results: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> list[tuple[str, str]]:
    file = folder / "provenance.json"
    known = read_json(file) if file.is_file() else {}
    model = config["model"]
    rows = [
        ("Data", str(config["data"]["data"])),
        ("Rows", ", ".join(f"{facts.number(n)} {facts.SPLITS.get(k, k)}"
                           for k, n in results["sizes"].items())),
        ("Method", str(config["method"])),
        ("Budget", str(config["budget"])),
        ("Seed", str(config["seed"])),
        ("Model", f"{model['model']}, {model['dtype']}"),
        ("Template", str(results["template"]["name"])),
        ("Versions", ", ".join(f"{k} {v}" for k, v in known.get("versions", {}).items())),
        ("Begun", str(known.get("began", ""))),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]
