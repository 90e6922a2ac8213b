"""Write the files of experiments/mmlu.yaml: rows of three sources in one schema (ARC's).

    python experiments/mmlu_rows.py --data FOLDER --out rows [--every 4]

FOLDER holds arc_challenge/train.jsonl, openbookqa/train.jsonl, mmlu/dev.jsonl and
mmlu/validation.jsonl. Of MMLU's dev rows every fifth of a subject is trained on; the others are the
target rows. `subject` names the source, or MMLU's subject. With --every N, one in N of the target
and held-out rows, for a machine that has no time for all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LETTERS = "ABCDEFGH"


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def row(source: dict[str, Any], number: int, subject: str) -> dict[str, Any]:
    texts = source["choices"]
    return {
        "id": f"{subject}-{number}",
        "question": source["question"],
        "choices": {"text": texts, "label": [*LETTERS[: len(texts)]]},
        "answerKey": LETTERS[source["answer"]],
        "subject": source.get("subject", subject),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    print(f"{len(rows)} rows: {path}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("rows"))
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args(arguments)
    train = []
    for name in ("arc_challenge", "openbookqa"):
        sources = read(options.data / name / "train.jsonl")
        train += [row(source, i, name) for i, source in enumerate(sources)]
    dev = [row(s, i, "mmlu-dev") for i, s in enumerate(read(options.data / "mmlu" / "dev.jsonl"))]
    train += dev[::5]
    held = read(options.data / "mmlu" / "validation.jsonl")
    write(options.out / "train.jsonl", train)
    target = [r for i, r in enumerate(dev) if i % 5]
    write(options.out / "target.jsonl", target[:: options.every])
    rows = [row(source, i, "mmlu") for i, source in enumerate(held)]
    write(options.out / "heldout.jsonl", rows[:: options.every])


if __name__ == "__main__":
    main()
