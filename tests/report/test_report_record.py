"""What distilling leaves for the report: marked texts, distances, overlap, and stage times."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, make_template
from nacd.data.rows import learnable_rows
from nacd.distillation.learn import Distiller, Starts, make_starts
from nacd.distillation.neighbours import nearest, regulariser
from nacd.distillation.text import TextRow
from nacd.meta import make_engine
from nacd.model.lora import ModelConfig
from nacd.model.prepare import prepare
from nacd.report.record import (
    around,
    marked_text,
    neighbour_distances,
    overlap_record,
    row_records,
    write_records,
)
from nacd.store.clock import StageClock
from nacd.terminal.progress import Progress
from tiny import ARCHITECTURES, TOKENS, tiny_tokenizer


def example(prompt: str, response: str = "water", source: str = "rows.jsonl:1") -> Example:
    return Example((Message("user", prompt), Message("assistant", response)), source)


def joined(pieces: list[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in pieces)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_pieces_join_to_the_text_whatever_is_marked(arch: str) -> None:
    tokenizer = tiny_tokenizer(arch)
    draw = random.Random(0)
    for _ in range(60):
        ids = [draw.randrange(3, TOKENS) for _ in range(draw.randrange(1, 20))]
        marks = [draw.random() < 0.4 for _ in ids]
        whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        pieces = marked_text(tokenizer, ids, marks)
        assert joined(pieces) == whole
        assert any(mark for _, mark in pieces) == (any(marks) and bool(whole))


def test_a_cut_never_parts_a_character() -> None:
    tokenizer = tiny_tokenizer("llama")
    ids = tokenizer("a你b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5  # three bytes of one character, each a token
    pieces = marked_text(tokenizer, ids, [False, False, True, True, False])
    assert pieces == [("a", False), ("你", True), ("b", False)]


def test_what_stands_around_the_learnable_span_is_kept() -> None:
    assert around("a <s> bc d", [("b", True), ("c", False)]) == [
        ("a <s> ", False),
        ("b", True),
        ("c d", False),
    ]
    assert around("elsewhere", [("no", False), ("where", True)]) == [("elsewhere", True)]
    assert around("", []) == []


def starts_and_text(learn: str, change: dict[int, str]) -> tuple[object, Starts, list[TextRow]]:
    """Two starting rows; tokens of the first one's learnable span are replaced by others' text."""
    tokenizer = tiny_tokenizer("llama")
    tokenizer.pad_token_id = 0
    examples = (example("the fox?"), example("the dog", source="rows.jsonl:2"))
    template = make_template("plain", tokenizer, examples)
    rows = tuple(template.encode(e, turns="last") for e in examples)
    pseudo = learnable_rows(rows, learn, 0)
    text = []
    for row, seed in zip(pseudo.rows, examples, strict=True):
        ids = list(row.ids)
        if seed is examples[0]:
            for offset, new in change.items():
                ids[row.prompt[0] + offset] = tokenizer(new, add_special_tokens=False)["input_ids"][
                    0
                ]
        prompt = str(tokenizer.decode(ids[slice(*row.prompt)], clean_up_tokenization_spaces=False))
        differing = sum(a != b for a, b in zip(ids, row.ids, strict=True))
        learnable = row.prompt[1] - row.prompt[0]
        text.append(
            TextRow(
                template.replace_prompt(seed, prompt),
                replace(row, ids=tuple(ids)),
                differing / learnable,
                0,
            )
        )
    return tokenizer, Starts(examples, rows, pseudo), text


def test_a_changed_token_is_marked_in_both_texts() -> None:
    tokenizer, starts, text = starts_and_text("prompt", {0: "z"})
    distances = torch.arange(starts.pseudo.size, dtype=torch.float32)
    first, second = row_records(tokenizer, starts, text, distances)
    assert joined(first["seed"]) == "the fox?"
    assert first["distilled"][0] == ("z", True)
    assert joined(first["distilled"]) == text[0].example.prompt
    assert first["seed"][0][1]
    assert not first["seed"][-1][1]
    assert joined(first["seed"][1:]) == joined(first["distilled"][1:])
    assert second["seed"] == second["distilled"] == [("the dog", False)]
    assert [first["seed_row"], second["seed_row"]] == ["rows.jsonl:1", "rows.jsonl:2"]
    count = first["tokens"]
    assert first["neighbour_distance"] == pytest.approx((count - 1) / 2)
    assert second["neighbour_distance"] == pytest.approx(count + (second["tokens"] - 1) / 2)
    assert json.loads(json.dumps(first))["response"] == "water"


def test_an_added_prefix_is_marked_as_a_whole() -> None:
    tokenizer, starts, text = starts_and_text("prefix:2", {})
    record = row_records(tokenizer, starts, text, torch.zeros(starts.pseudo.size))[0]
    assert record["seed"] == [("the fox?", False)]
    (added, marked), (rest, unmarked) = record["distilled"]
    assert (marked, unmarked) == (True, False)
    assert added + rest == text[0].example.prompt
    assert rest == "the fox?"


def test_a_row_that_went_back_to_its_seed_has_no_mark() -> None:
    tokenizer, starts, text = starts_and_text("prefix:2", {})
    text[0] = TextRow(starts.examples[0], starts.rows[0], 0.0, 0)
    record = row_records(tokenizer, starts, text, torch.zeros(starts.pseudo.size))[0]
    assert record["seed"] == record["distilled"] == [("the fox?", False)]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_average_to_the_regulariser(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(7, 5, generator=generator)
    table = torch.randn(30, 5, generator=generator)
    allowed = torch.ones(30, dtype=torch.bool)
    allowed[:3] = False
    rows = table[nearest(vectors, table, allowed, metric)]  # pyright: ignore[reportArgumentType]
    expected, _ = regulariser(vectors, rows, metric, float((table**2).sum(1).mean()))  # pyright: ignore[reportArgumentType]
    found = neighbour_distances(vectors, table, allowed, metric)  # pyright: ignore[reportArgumentType]
    assert found.shape == (7,)
    assert float(found.mean()) == pytest.approx(expected, rel=1e-5)


def test_overlap_is_counted_by_row_and_named_by_source() -> None:
    same = " ".join(f"word{i}" for i in range(13))
    report = [example("is ice cold", source="r:1"), example(same, source="r:2")]
    train = [example(f"{same} more", source=f"t:{i}") for i in range(30)] + [example("other")]
    looked_at = {"distilled": train[:1], "train": train, "target": report[:1]}
    found = overlap_record(looked_at, report)
    assert found["report_rows"] == 2
    assert found["distilled"] == {
        "rows": 1,
        "overlapping": 1,
        "report_overlapping": 1,
        "pairs": 1,
        "shown": [("t:0", "r:2")],
    }
    assert (found["train"]["overlapping"], len(found["train"]["shown"])) == (30, 20)
    assert found["target"]["shown"] == [("r:1", "r:1")]


def test_stages_add_up_over_processes(tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    clock = StageClock(file)
    with clock.stage("learning"):
        time.sleep(0.02)
        held = torch.ones(4_000_000)  # 16 MB
    del held
    with pytest.raises(KeyboardInterrupt), clock.stage("measuring"):
        raise KeyboardInterrupt
    again = StageClock(file)
    with again.stage("learning"):
        time.sleep(0.02)
    stages = {stage["name"]: stage for stage in json.loads(file.read_text())["stages"]}
    assert list(stages) == ["learning", "measuring"]
    assert stages["learning"]["times"] == 2
    assert stages["learning"]["seconds"] >= 0.04
    assert stages["learning"]["device_peak_bytes"] is None
    peak = stages["learning"]["peak_bytes"]
    assert peak is None or peak > 16_000_000


def test_a_damaged_stage_file_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    file.write_text('{"stages": 3')
    with StageClock(file).stage("learning"):
        pass
    assert [s["name"] for s in json.loads(file.read_text())["stages"]] == ["learning"]


def test_a_learned_run_is_recorded(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """From starting rows by two outer steps to the records, held to what the run itself says."""
    data = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Name the thing number {i}", "output": f"name {i}"} for i in range(40)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = DistillConfig(
        model=ModelConfig(model=str(tiny_folder("llama")), lora_rank=1, device="cpu"),
        data=DataConfig(data=str(data), target_rows=4, template="alpaca"),
        recipe=Recipe(batch_size=2, epochs=1, learning_rate=5e-3),
        outer=OuterLoopConfig(
            objective="train-loss",
            outer_steps=2,
            check_every=1,
            step_size=3.0,
            projection="nearest",
        ),
    )
    prepared = prepare(config.model, config.data)
    starts = make_starts(prepared, [0, 1, 2], "prompt")
    engine = make_engine("exact", 1e-3)
    quiet = Progress(quiet=True)
    distiller = Distiller(
        config, prepared, starts, config.recipe, engine, [], tmp_path / "distill", quiet
    )
    learned = distiller.run()
    text = distiller.text(learned.last_ids)
    assert any(row.changed for row in text)
    write_records(tmp_path, prepared, starts, learned, text, distiller.allowed, "euclidean")

    lines = (tmp_path / "distill" / "rows.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [joined(f["distilled"]) for f in found] == [row.example.prompt for row in text]
    assert [joined(f["seed"]) for f in found] == [e.prompt for e in starts.examples]
    assert [any(mark for _, mark in f["distilled"]) for f in found] == [
        row.changed > 0 for row in text
    ]
    assert all(f["neighbour_distance"] >= 0 for f in found)
    kept = json.loads((tmp_path / "distill" / "learned.json").read_text())
    assert kept["exported_step"] == learned.best_step
    overlap = json.loads((tmp_path / "distill" / "overlap.json").read_text())
    assert overlap["train"]["rows"] == len(prepared.train)
