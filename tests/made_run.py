"""Run folders as `nacd distill` leaves them, made of given texts and of made-up figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from nacd.commands.select import SelectConfig
from nacd.comparison.table import summarise, write_parquet
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.check import CheckConfig
from nacd.config.compare import CompareConfig
from nacd.config.recipe import Recipe
from nacd.config.settings import to_dict
from nacd.model.lora import ModelConfig

METHODS = ("zero-shot", "random", "seeds", "soft", "text", "full")
HOSTILE = (
    "<script>window.taken = 1</script>",
    "</script><script>window.taken = 1</script>",
    '"><img src="http://127.0.0.1:9/taken.png" onerror="window.taken = 1">',
    "' onmouseover='window.taken = 1' x='",
    "<!-- <![CDATA[ ]]> -->",
    "</article></main></body></html><h1>taken</h1>",
    "{{ 7 * 7 }} {% include '/etc/passwd' %} ${7 * 7} `x`",
    "line\u2028separator\u2029 and \u202eright to left\u202c \x1b[31mred\x07",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "<svg/onload=window.taken=1><style>*{display:none}</style>",
)


def make_run(
    folder: Path,
    texts: Sequence[str] = ("What is ice?", "Name a bird.", "Why is the sky blue?"),
    *,
    config: DistillConfig | None = None,
    beside_seeds: bool = True,
    done: bool = True,
    trainings: int = 3,
) -> Path:
    """Write a run folder whose rows have these texts; every second row is changed.

    Args:
        folder: made.
        texts: of the prompts; also used as response, source and names.
        config: its settings; without them, the defaults with data and out of here.
        beside_seeds: whether it has what the newest version records for reports.
        done: whether the table and the verdict are there.
        trainings: of every row of the table.
    """
    config = config or DistillConfig(
        data=DataConfig(data=f"data/{texts[0]}.jsonl", max_tokens=64),
        outer=OuterLoopConfig(objective="target-loss", outer_steps=4, beta=0.1),
    )
    write(folder / "run.yaml", yaml.safe_dump(to_dict(replace(config, out=folder))))
    sizes = {"train": 40, "target": 8, "development": 9, "report": 20}
    dump(
        folder / "provenance.json",
        {
            "versions": {"nacd": "0.1.0", "torch": "2"},
            "data": {name: f"{count + 1} rows, abc" for name, count in sizes.items()},
            "began": "2026-01-02",
        },
    )
    dump(folder / "doctor.json", {"engine": "exact", "eps": None, "reason": "as asked for"})
    lines(folder / "distill" / "metrics.jsonl", metrics(4))
    if not done:
        return folder
    rows = [row(number, text) for number, text in enumerate(texts, 1)]
    lines(
        folder / "dataset" / "train.jsonl",
        [
            {
                "prompt": f"Question: {text}\nAnswer:",
                "completion": f" {text}",
                "seed_row": found["seed_row"],
                "seed_digest": "0" * 64,
                "tokens_changed": found["tokens_changed"],
            }
            for text, found in zip(texts, rows, strict=True)
        ],
    )
    table = [entry(folder, method, i, trainings) for i, method in enumerate(METHODS)]
    verdict = f"Take the distilled rows: test NLL is 0.010 (-0.004 to 0.024) lower ({texts[0]})."
    dump(
        folder / "results.json",
        {"verdict": verdict, "table": table, "tokens_changed": 0.1, "sizes": sizes},
    )
    if beside_seeds:
        lines(folder / "distill" / "rows.jsonl", rows)
        learned = {"exported_step": 2, "stopped": texts[0], "learning_rate": 1e-3, "seconds": 40}
        dump(folder / "distill" / "learned.json", learned)
        clean = {"overlapping": 0, "report_overlapping": 0, "pairs": 0, "shown": []}
        shared = {"overlapping": 1, "report_overlapping": 1, "pairs": 1}
        dump(
            folder / "distill" / "overlap.json",
            {
                "words": 13,
                "report_rows": 20,
                "distilled": {"rows": len(rows)} | clean,
                "train": {"rows": 40, "shown": [[f"{texts[0]}:1", "r:2"]]} | shared,
            },
        )
        dump(
            folder / "stages.json",
            {"device": "cpu", "stages": [stage("learning", 80.0), stage("measuring", 200.0)]},
        )
    return folder


def make_comparison(folder: Path, name: str = "model") -> Path:
    """Write the folder of a comparison whose target model, data and reasons have this name."""
    methods = ("zero-shot", "random", "less", "seeds", "text", "full")
    cells: list[dict[str, Any]] = []
    for target in ("source", name):
        for place, method in enumerate(methods):
            for seed in range(3):
                row_nll = [6.0 - 0.2 * place + 0.01 * seed * i for i in range(8)]
                cells.append(
                    {
                        "target": target,
                        "budget": "5%",
                        "method": method,
                        "seed": seed,
                        "report_nll": sum(row_nll) / 16,
                        "row_nll": row_nll,
                        "row_tokens": [2] * 8,
                        "rows": 4,
                        "tokens": 40,
                        "steps": 2,
                        "learning_rate": 1e-3,
                        "training_seconds": 60.0 if method == "full" else 10.0,
                        "choosing_seconds": 120.0 if method in ("less", "text") else None,
                        "boundaries_kept": 0.75 if method == "text" else None,
                        "template": name,
                        "accuracy": {"acc": 0.5, "lm_eval": "0.4", "shots": 0, "n": 8},
                        "elsewhere": {"data": name, "nll": 2.0, "rows": 3},
                    }
                )
        cells.append(
            {"target": target, "budget": "5%", "method": "rds+", "seed": 0, "failed": name}
        )
    config = CompareConfig(out=folder, data=DataConfig(data=name), target_models=(name,))
    write(folder / "run.yaml", yaml.safe_dump(to_dict(config)))
    table = summarise(cells, ("rds+", *methods))
    sizes = {"train": 40, "target": 8, "development": 9, "report": 8}
    dump(folder / "results.json", {"table": table, "sizes": sizes})
    dump(folder / "overlap.json", {"rows": [{"train": f"{name}:1", "report": [f"{name}:2"]}]})
    write_parquet(cells, folder / "results.parquet")
    return folder


def make_check(folder: Path, name: str = "model") -> Path:
    """Write the folder of a check whose data, model, sentences and template have this name."""

    def made(kind: str, rows: int, nll: float, trainings: int, **more: Any) -> dict[str, Any]:
        against = {"mean": nll - 2.4, "low": None, "high": None, "word": "too few"}
        if trainings > 1:
            against |= {"low": nll - 2.45, "high": nll - 2.35, "word": "better"}
        same = (kind, rows) == ("random", 105)
        return {
            "set": kind,
            "name": f"{rows:,} rows by RDS+" if kind == "rds+" else f"{rows:,} random rows",
            "rows": rows,
            "passes": 4.0 if trainings else 0.0,
            "settled": True,
            "tokens": 40 * rows,
            "nll": nll,
            "values": [nll] * max(1, trainings),
            "half": 0.05 if trainings else None,
            "trainings": trainings,
            "seconds": 40.0,
            "choosing_seconds": 60.0 if kind == "rds+" else None,
            "minus_random": None if same else against,
        } | more

    table = [
        made("zero-shot", 0, 4.5, 0),
        made("random", 26, 2.8, 3),
        made("random", 105, 2.4, 5),
        made("random", 2108, 2.0, 1, settled=False),
        made("rds+", 105, 2.3, 3),
    ]
    values = {
        "kind": "choose",
        "verdict": f"Choose by {name}: give --minutes 30 (estimated).",
        "detail": f"{name}.",
        "budget_rows": 105,
        "total_rows": 2108,
        "margin": 0.125,
        "table": table,
        "recipe": to_dict(Recipe()),
        "tuning": {
            "said": name,
            "table": [
                {"learning rate": "0.0005", "epochs": "4", "validation NLL": "2.413"}
                for _ in range(12)
            ],
            "notes": [name],
            "validation_rows": 200,
        },
        "warnings": [[name, name]],
        "sizes": {"training": 2108, "target": 64, "validation": 200, "test": 400},
        "template": {"name": name},
        "minutes": 9.5,
        "costs": [{"name": name, "count": 3, "seconds": 90.0}],
        "left_out": [{"name": name, "seconds": 600.0}],
        "datasets": {"dataset": {"rows": 105, "tokens": 4200, "by": name, "of_tokens": 84000}},
    }
    config = CheckConfig(out=folder, data=DataConfig(data=name), model=ModelConfig(model=name))
    write(folder / "run.yaml", yaml.safe_dump(to_dict(config)))
    dump(folder / "provenance.json", {"versions": {"nacd": name}, "began": "2026-11-25"})
    dump(folder / "results.json", values)
    return folder


def make_selection(folder: Path, name: str = "model", method: str = "rds+") -> Path:
    """Write the folder of chosen rows whose data, model, texts and groups have this name."""
    rows = [
        {
            "prompt": f"Question: {name} {number}\nAnswer:" if number % 2 else [
                {"role": "system", "content": name}, {"role": "user", "content": f"ask {name}"}
            ],
            "completion": f" {name}" if number % 2 else [{"role": "assistant", "content": name}],
            "seed_row": f"folder/{name}:{number}",
            "seed_digest": "0" * 64,
            "tokens_changed": 0,
        }
        for number in range(1, 13)
    ]  # fmt: skip
    config = SelectConfig(
        out=folder, method=method, budget="12", data=DataConfig(data=name),
        model=ModelConfig(model=name),
    )  # fmt: skip
    write(folder / "run.yaml", yaml.safe_dump(to_dict(config)))
    lines(folder / "dataset" / "train.jsonl", rows)
    dump(
        folder / "results.json",
        {
            "method": method,
            "budget": "12",
            "rows": [
                {"source": row["seed_row"], "digest": "0", "tokens": 20 + place, "score": -place}
                for place, row in enumerate(rows)
            ],
            "tokens": 306,
            "seconds": 95.0,
            "flops": 1.5e12,
            "sizes": {"train": 200, "target": 8, "development": 9, "report": 20},
            "template": {"name": name},
            "measured": [["Lowest validation NLL", name]],
        },
    )
    about = {"of": 200, "of_tokens": 8000, "width": 20, "lengths": [[20, 180], [0, 12]]}
    groups = [[f"{name} {place}", 12 if place == 0 else 0, 10] for place in range(20)]
    dump(folder / "about_rows.json", about | {"groups": groups})
    return folder


def row(number: int, text: str) -> dict[str, Any]:
    changed = number % 2
    return {
        "row": number,
        "seed_row": f"folder/{text}:{number}",
        "seed_digest": "0" * 64,
        "seed": [[f"{number} ", False], [text, bool(changed)]],
        "distilled": [[f"{number} ", False], [text + " anew" * changed, bool(changed)]],
        "response": text,
        "tokens": 10,
        "tokens_changed": changed * number / 10,
        "tokens_repaired": 0,
        "neighbour_distance": 0.05 / number,
    }


def metrics(steps: int) -> list[dict[str, Any]]:
    look = {"development_soft": 2.5, "development_text": 2.6, "soft_to_text_gap": 0.1}
    first = {"outer_step": 0, "seconds": 0.0, "tokens_changed": 0.0, **look}
    return [first] + [
        {
            "outer_step": step,
            "seconds": 10.0,
            "objective": float("nan") if step == 3 else 3 - 0.1 * step,
            "learning_rate": 1e-3,
            "neighbour_distance": 0.01 * step,
        }
        | ({"tokens_changed": 0.05 * step} | look if step % 2 == 0 else {})
        for step in range(1, steps + 1)
    ]


def entry(folder: Path, method: str, number: int, trainings: int) -> dict[str, Any]:
    count = 1 if method in ("zero-shot", "full") else trainings
    base = 4.5 if method == "zero-shot" else 2.6 - 0.05 * number
    cells = [
        {
            "method": method,
            "seed": seed,
            "report_nll": base + 0.01 * ((seed + (method == "text")) % 3),
            "rows": 0 if method == "zero-shot" else 3,
            "tokens": 30,
            "steps": 0 if method == "zero-shot" else 6,
            "learning_rate": 1e-3,
            "training_seconds": 2.0,
            "row_nll": [1.0, 2.0],
        }
        for seed in range(count)
    ]
    for cell in cells:
        dump(folder / "ladder" / f"{method}-{cell['seed']}.json", cell)
    mean = sum(cell["report_nll"] for cell in cells) / count
    return {
        "method": method,
        "label": f"row {method}",
        "report_nll": mean,
        "sd": None if count == 1 else 0.01,
        "trainings": count,
        "rows": cells[0]["rows"],
        "tokens": 30,
        "steps": cells[0]["steps"],
        "learning_rate": 1e-3,
        "tokens_changed": 0.1 if method == "text" else None,
        "training_seconds": 2.0,
        "minus_seeds": -0.1,
        "minus_seeds_95": 0.02,
    }


def stage(name: str, seconds: float) -> dict[str, Any]:
    peaks = {"peak_bytes": 3 * 10**9, "device_peak_bytes": None}
    return {"name": name, "seconds": seconds, "times": 1, **peaks}


def add_expert(folder: Path, number: int, total: int, every: int, held_out: bool) -> None:
    """Write the manifest of an expert with a snapshot every so many steps."""
    steps = [*range(0, total, every), total]
    snapshots = [
        {
            "step": step,
            "file": f"step-{step:05d}.safetensors",
            "sha256": "",
            "losses": [3.0 - 0.1 * s for s in range(before, step)],
            "held_out": 3.2 - 0.1 * step if held_out else None,
        }
        for before, step in zip([0, *steps], steps, strict=False)
    ]
    manifest = {"format": 1, "state": "recorded", "made_with": {}, "snapshots": snapshots}
    dump(folder / "experts" / str(number) / "manifest.json", manifest)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def dump(path: Path, value: Any) -> None:
    write(path, json.dumps(value))


def lines(path: Path, values: Sequence[Any]) -> None:
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    write(path, text)
