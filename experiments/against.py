"""One row of a comparison against every other: 95 % intervals over trainings and over questions.

python experiments/against.py runs/ladder [--row text] [--of runs/other]

With --of the row is another comparison's (of the same test rows), held against the first one's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pyarrow import parquet

from nacd.comparison.table import difference

Cells = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]


def cells(run: Path) -> Cells:
    """Trainings that have ended: (target, budget) -> row -> cells."""
    found: Cells = {}
    for cell in parquet.read_table(run / "results.parquet").to_pylist():
        if cell.get("report_nll") is not None:
            cell.pop("failed", None)
            group = found.setdefault((cell["target"], cell["budget"]), {})
            group.setdefault(cell["method"], []).append(cell)
    return found


def report_rows(run: Path) -> str:
    """What tells a comparison's test rows from others."""
    return json.loads((run / "provenance.json").read_text(encoding="utf-8"))["data"]["report"]


def main() -> None:
    """Print the differences, a line a target, budget and row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--row", default="text")
    parser.add_argument("--of", type=Path)
    options = parser.parse_args()
    if options.of and report_rows(options.of) != report_rows(options.run):
        parser.error(f"--of {options.of}: its test rows are not those of {options.run}.")
    rows, rivals = cells(options.of or options.run), cells(options.run)
    for (target, budget), group in rows.items():
        mine = group.get(options.row, [])
        print(f"{Path(target).name}, budget {budget}: {options.row} minus")
        for name, theirs in rivals.get((target, budget), {}).items():
            if not options.of and name == options.row:
                continue
            if found := difference(mine, theirs):
                half, (low, high) = found["over_trainings"], found["over_questions"]
                over = f" ± {half:.3f}" if half else ""
                print(f"  {name:<18}{found['mean']:+.3f}{over:<10}questions {low:+.3f} {high:+.3f}")


if __name__ == "__main__":
    main()
