"""`nacd runs` and `nacd show`: what runs there are, and what one of them made, on a terminal.

Lines are at most 80 columns wide. Text of data rows is data: control characters in it are written
out, so that no row can move the cursor or colour the terminal.
"""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nacd.checking.said import checked_lines
from nacd.comparison.decision import comparison_lines, decided_lines
from nacd.comparison.results import of_run, summary_of
from nacd.comparison.text import lines
from nacd.config.commands import RunsConfig, ShowConfig
from nacd.errors import UserError
from nacd.report import facts
from nacd.report.chosen import chosen_headline, chosen_rows
from nacd.report.rows import all_rows
from nacd.store.files import finite
from nacd.store.folder import (
    Comparison,
    Run,
    is_check,
    is_comparison,
    is_run,
    is_selection,
    read_check,
    read_comparison,
    read_run,
    read_selection,
)

KINDS = (is_run, is_comparison, is_selection, is_check)
WIDTH = 80
DEPTH = 3
"""Folders below the given one that are looked into."""


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder` and up to three folders deep, by name.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds your run folders.")
    patterns = ("/".join(["*"] * depth + ["run.yaml"]) for depth in range(DEPTH + 1))
    found = {file.parent for pattern in patterns for file in folder.glob(pattern)}
    return sorted(path for path in found if _is_run_folder(path))


def _is_run_folder(path: Path) -> bool:
    try:
        return any(is_kind(path) for is_kind in KINDS)
    except UserError:
        return True  # damaged: shown as that


def summary(run: Run) -> dict[str, Any]:
    """State and result of a run, as plain values."""
    table = [] if run.results is None else run.results["table"]
    text = next((row for row in table if row["method"] == "text"), {})
    return {
        "run": str(run.path),
        "state": run.state,
        "began": run.provenance.get("began"),
        "model": run.setting("model.model"),
        "data": run.setting("data.data"),
        "budget": run.setting("budget"),
        "verdict": None if run.results is None else run.results["verdict"],
        "tokens_changed": None if run.results is None else run.results["tokens_changed"],
        "report_nll": text.get("report_nll"),
        "minus_seeds": text.get("minus_seeds"),
        "minus_seeds_95": text.get("minus_seeds_95"),
    }


def comparison_summary(found: Comparison) -> dict[str, Any]:
    """State and table of a comparison, as plain values."""
    return {
        "run": str(found.path),
        "state": found.state,
        "began": found.provenance.get("began"),
        "model": found.config.get("model", {}).get("model"),
        "data": found.config.get("data", {}).get("data"),
        "budgets": found.config["budgets"],
        "methods": found.config["methods"],
        "table": [] if found.results is None else found.results["table"],
    }


def selection_summary(path: Path) -> dict[str, Any]:
    """State and rows of a selection, as plain values."""
    config, results = read_selection(path)
    rows = [] if results is None else results["rows"]
    return {
        "run": str(path),
        "state": f"{len(rows)} rows by {config['method']}" if rows else "choosing",
        "model": config.get("model", {}).get("model"),
        "data": config.get("data", {}).get("data"),
        "budget": config["budget"],
        "method": config["method"],
        "tokens": None if results is None else results["tokens"],
        "seconds": None if results is None else results["seconds"],
        "rows": rows,
    }


def check_summary(path: Path) -> dict[str, Any]:
    """State, verdict and table of a check, as plain values."""
    config, results = read_check(path)
    about = {
        "run": str(path),
        "state": "checking" if results is None else f"checked: {results['kind']}",
        "model": config.get("model", {}).get("model"),
        "data": config.get("data", {}).get("data"),
        "budget": config["budget"],
        "minutes": config["minutes"],
    }
    names = ("verdict", "detail", "table")
    return about | {name: None if results is None else results[name] for name in names}


def runs_text(config: RunsConfig) -> str:
    """What `nacd runs` prints.

    Raises:
        UserError: no such folder.
    """
    found, damaged = [], []
    for path in find_runs(config.folder):
        try:
            if is_comparison(path):
                found.append(comparison_summary(read_comparison(path)))
            elif is_check(path):
                found.append(check_summary(path))
            elif is_selection(path):
                found.append(selection_summary(path))
            else:
                found.append(summary(read_run(path)))
        except UserError as error:
            damaged.append({"run": str(path), "state": "damaged", "error": str(error)})
    if config.json:
        return _as_text(found + damaged)
    if not found and not damaged:
        return f"no run folders in {config.folder}"
    entries = found + damaged
    names = [_relative(Path(entry["run"]), config.folder) for entry in entries]
    wide = min(28, max(len("run"), *map(len, names)))
    head = f"{'run':<{wide}}  {'NLL':>6}  {'vs start':>14}  {'changed':>7}  state"
    out = [head, "-" * WIDTH]
    for name, entry in zip(names, entries, strict=True):
        line = f"{_fit(name, wide):<{wide}}  {_figures(entry)}  "
        out.append(line + _fit(entry["state"], WIDTH - len(line)))
    return "\n".join(out)


def _figures(entry: dict[str, Any]) -> str:
    """NLL, difference from the starting rows and tokens changed, in 31 characters."""
    nll, against, changed = "", "", ""
    if entry.get("report_nll") is not None:
        nll = f"{entry['report_nll']:.3f}"
    if entry.get("minus_seeds") is not None:
        against = f"{entry['minus_seeds']:+.3f}"
        if entry["minus_seeds_95"] is not None:
            against += f" ±{entry['minus_seeds_95']:.3f}"
    if entry.get("tokens_changed") is not None:
        changed = f"{entry['tokens_changed']:.1%}"
    return f"{nll:>6}  {against:>14}  {changed:>7}"


def show_text(config: ShowConfig) -> str:
    """What `nacd show` prints.

    Raises:
        UserError: no run folder, or a damaged file in it.
    """
    if is_comparison(config.run):
        return _show_comparison(read_comparison(config.run), config.json)
    if is_check(config.run):
        return _show_check(config.run, config)
    if is_selection(config.run):
        return _show_selection(config.run, config)
    run = read_run(config.run)
    rows = all_rows(run)
    if config.json:
        kept = [_as_json(row) for row in rows[: max(0, config.rows)]]
        table = [] if run.results is None else run.results["table"]
        return _as_text(summary(run) | {"table": table, "rows": kept})
    return "\n".join(_show(run, rows, config.rows))


def _show_comparison(found: Comparison, as_json: bool) -> str:
    values = comparison_summary(found)
    if as_json:
        return _as_text(values)
    out = [f"{found.path}: {found.state}", _fit(f"{values['model']}, {values['data']}", WIDTH)]
    if found.results is not None and values["table"]:
        out += ["", *decided_lines(values["table"]), ""]
        out += comparison_lines(values["table"], found.results["sizes"], found.config)
    return "\n".join(out)


def _show_check(path: Path, config: ShowConfig) -> str:
    values, results = check_summary(path), read_check(path)[1]
    made = results["datasets"].get("dataset") if results else None
    rows = chosen_rows(path)[: max(0, config.rows)] if made else []
    if config.json:
        return _as_text(values | {"rows": [*map(_row_as_json, rows)]})
    out = [f"{path}: {values['state']}", _fit(f"{values['model']}, {values['data']}", WIDTH)]
    out += [] if results is None else checked_lines(results)
    if made and rows:
        what = f"{made['rows']:,} rows, chosen by {made['by']}"
        out.append(f"{what}: the first {len(rows)} of dataset/train.jsonl")
    return "\n".join([*out, *_texts(rows)])


def _show_selection(path: Path, config: ShowConfig) -> str:
    values = selection_summary(path)
    rows = chosen_rows(path) if values["rows"] else []
    of, rows = len(rows), rows[: max(0, config.rows)]
    if config.json:
        return _as_text(values | {"rows": [*map(_row_as_json, rows)]})
    out = [f"{path}: {values['state']}", _fit(f"{values['model']}, {values['data']}", WIDTH)]
    if of:
        out += ["", *textwrap.wrap(chosen_headline(path).replace("`", ""), WIDTH)]
    if rows:
        out += ["", f"the first {len(rows)} of {of:,} rows, all in dataset/train.jsonl"]
    return "\n".join([*out, *_texts(rows)])


def _texts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Real rows, each with its place, its source and its text."""
    for row in rows:
        score = "" if row["score"] is None else f", score {row['score']:.4g}"
        tokens = "" if row["tokens"] is None else f", {row['tokens']} tokens"
        yield ""
        yield _fit(f"row {row['number']}{tokens}{score}, from {visible(row['source'])}", WIDTH)
        yield from _paragraph("text", row["prompt"])
        yield from _paragraph("reply", row["response"])


def _row_as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("bytes", "number")}


def _show(run: Run, rows: Sequence[dict[str, Any]], most: int) -> Iterator[str]:
    yield f"{run.path}: {run.state}"
    yield _fit(f"{run.setting('model.model')}, {run.setting('data.data')}", WIDTH)
    if run.results is not None:
        sizes = run.results["sizes"]
        parts = (f"{count} {facts.SPLITS.get(name, name)}" for name, count in sizes.items())
        yield ", ".join(parts) + " rows"
        yield ""
        yield from textwrap.wrap(run.results["verdict"], WIDTH)
        if run.results["table"]:
            yield ""
            yield from lines(summary_of(run))
            yield ""
            for title, text in facts.warnings(run, of_run(run)):
                yield from textwrap.wrap(f"{title} {text}", WIDTH)
    chosen = sorted(rows, key=lambda row: (-row["changed"], row["number"]))[: max(0, most)]
    for row in chosen:
        distance = "" if row["distance"] is None else f", distance {row['distance']:.3g}"
        yield ""
        yield _fit(
            f"row {row['number']} of {len(rows)}, {row['changed']:.1%} of tokens changed"
            f"{distance}, from {visible(row['source'])}",
            WIDTH,
        )
        if row["seed"] is not None:
            yield from _paragraph("start", _joined(row["seed"]))
        if row["distilled"] is not None:
            yield from _paragraph("text", _joined(row["distilled"]))
        yield from _paragraph("reply", row["response"])
    if chosen and rows and not run.rows:
        yield ""
        yield "(an older version made this folder: the starting rows' texts are not in it)"


def _as_text(value: Any) -> str:
    return json.dumps(finite(value), indent=2, allow_nan=False)


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "row": row["number"],
        "source": row["source"],
        "seed": None if row["seed"] is None else _joined(row["seed"]),
        "text": _joined(row["distilled"] or row["seed"] or []),
        "response": row["response"],
        "tokens_changed": row["changed"],
        "neighbour_distance": row["distance"],
    }


def _joined(pieces: Sequence[Sequence[Any]]) -> str:
    return "".join(text for text, _ in pieces)


def _paragraph(name: str, text: str) -> list[str]:
    lead = f"  {name:<6}"
    wrapped = textwrap.wrap(visible(text), WIDTH - len(lead)) or [""]
    return [(lead if i == 0 else " " * len(lead)) + line for i, line in enumerate(wrapped)]


def visible(text: str) -> str:
    """The text on one line, control characters, overrides of direction and the like written out."""
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else _written(c) for c in text
    )


def _written(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode("ascii")


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _relative(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder)
    return str(inside) if inside.parts else path.resolve().name
