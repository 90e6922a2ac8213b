"""One row of a comparison against every other, paired by training seed.

python experiments/against.py runs/ladder [--row text]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyarrow import parquet

from nacd.comparison.table import difference


def main() -> None:
    """Print the differences, a line a target, budget and row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--row", default="text")
    options = parser.parse_args()
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for cell in parquet.read_table(options.run / "results.parquet").to_pylist():
        if cell.get("report_nll") is not None:
            group = groups.setdefault((cell["target"], cell["budget"]), {})
            cell.pop("failed", None)
            group.setdefault(cell["method"], []).append(cell)
    for (target, budget), rows in groups.items():
        print(f"{Path(target).name}, budget {budget}: {options.row} minus")
        for name, cells in rows.items():
            found = difference(rows.get(options.row, []), cells) if name != options.row else None
            if found:
                half = found["over_trainings"]
                print(f"  {name:<18}{found['mean']:+.3f}" + (f" ± {half:.3f}" if half else ""))


if __name__ == "__main__":
    main()
