"""Methods on a model and rows: hidden states of five architectures, and what every method owes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nacd.config import DataConfig, SelectionConfig
from nacd.config.budget import parse_budget
from nacd.config.recipe import Recipe
from nacd.data import collate
from nacd.distillation.learn import draw
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import Part, Prepared, prepare
from nacd.selection import METHODS, Task, check_method, choice, choose, choose_once, hidden, rank
from nacd.selection.hidden import hidden_flops, hidden_states, last_hidden
from nacd.selection.rds import cosine
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from tiny import ARCHITECTURES

Folder = Callable[[str], Path]
HERE = [m for m in METHODS if find_spec(METHODS[m].module)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows of three subjects, half of them of the first, of many lengths."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    things = ["fox", "plant", "water", "food", "sun", "dog", "name", "thing", "sea", "tree"]
    lines = [
        {
            "instruction": f"Which {thing} {'and which plant ' * (i % 4)}is number {i}{k}?",
            "output": " and ".join(["the answer", thing, "water", "sun"][: 1 + (i + k) % 4]),
            "subject": ("colours", "colours", "colours", "animals", "animals", "food")[k],
        }
        for i, thing in enumerate(things)
        for k in range(6)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def load(model: Path, data: Path) -> Prepared:
    return prepare(
        ModelConfig(model=str(model), lora_rank=2),
        DataConfig(data=str(data), target_rows=6, template="alpaca", group_column="subject"),
    )


@pytest.fixture(scope="module")
def prepared(tiny_folder: Folder, data: Path) -> Prepared:
    return load(tiny_folder("llama"), data)


def task(prepared: Prepared, folder: Path, **more: Any) -> Task:
    settings: dict[str, Any] = {
        "recipe": Recipe(batch_size=4, epochs=2),
        "config": SelectionConfig(
            warmup_share=0.3, warmup_epochs=2, projection_dim=64, minutes=0.001
        ),
        "seed": 0,
        "progress": Progress(quiet=True),
        "budget": "5",
    }
    settings |= more
    budget = parse_budget(settings.pop("budget"))
    return Task(prepared, folder=folder, budget=budget, **settings)


# Hidden states


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_hidden_states_are_what_the_head_receives(
    arch: str, tiny_folder: Folder, data: Path, tmp_path: Path
) -> None:
    """Against the input of the vocabulary head of whole forward passes, one row at a time."""
    prepared = load(tiny_folder(arch), data)
    model, seen = prepared.model, []
    model.write(model.fresh_theta(3) + 0.1)  # hidden states are the model's own, without this
    found = {p: hidden_states(task(prepared, tmp_path), "target", p) for p in ("mean", "weighted")}  # pyright: ignore[reportArgumentType]
    model.write(torch.zeros(model.size))
    handle = model.hf.get_output_embeddings().register_forward_pre_hook(
        lambda _module, args: seen.append(args[0][0].double().numpy())
    )
    for i, row in enumerate(prepared.target.rows):
        seen.clear()
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([row.ids]))
        states = seen[0]
        weights = np.arange(1, len(row) + 1) / (len(row) * (len(row) + 1) / 2)
        weighted = sum(w * state for w, state in zip(weights, states, strict=True))
        assert found["weighted"][i] == pytest.approx(weighted, rel=1e-4, abs=1e-5)
        assert found["mean"][i] == pytest.approx(states.mean(0), rel=1e-4, abs=1e-5)
    handle.remove()
    assert found["mean"].dtype == np.float32
    assert found["mean"].shape == (6, model.hf.get_output_embeddings().weight.shape[1])
    batch = collate(prepared.train.rows[:2], model.tokenizer.pad_token_id)
    assert not last_hidden(model, batch).requires_grad


def test_no_pass_through_the_vocabulary_head(prepared: Prepared, tmp_path: Path) -> None:
    head = prepared.model.hf.get_output_embeddings()

    def refuse(_module: nn.Module, _args: object) -> None:
        raise AssertionError("logits were computed")

    handle = head.register_forward_pre_hook(refuse)
    hidden_states(task(prepared, tmp_path), "train", "mean")
    handle.remove()
    tokens = sum(map(len, prepared.train.rows))
    used = sum(p.numel() for p in prepared.model.hf.parameters()) - 2 * head.weight.numel()
    assert hidden_flops(task(prepared, tmp_path), "train") == 2 * tokens * used  # tables untied


def test_hidden_states_are_kept_and_go_on(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden, "SHARD", 10)
    asked = task(prepared, tmp_path)
    whole = hidden_states(task(prepared, tmp_path / "whole"), "train", "mean")
    real, passes = hidden.last_hidden, []

    def stopped(*args: Any) -> torch.Tensor:
        if len(passes) == 3:
            raise KeyboardInterrupt
        passes.append(args)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(hidden, "last_hidden", stopped)
        with pytest.raises(KeyboardInterrupt):
            hidden_states(asked, "train", "mean")
    count = len(list(tmp_path.glob("hidden-train-mean-*.safetensors")))
    assert 0 < count < 5
    assert np.array_equal(hidden_states(asked, "train", "mean"), whole)
    with monkeypatch.context() as patch:
        patch.setattr(hidden, "last_hidden", stopped)  # has no pass left
        assert np.array_equal(hidden_states(asked, "train", "mean"), whole)
    # Nor are those of another model, or ones that are no numbers.
    config = replace(prepared.model.config, dtype="float64")
    with monkeypatch.context() as patch:
        patch.setattr(prepared.model, "config", config)
        patch.setattr(hidden, "last_hidden", lambda *args: torch.nan * real(*args))
        with pytest.raises(UserError, match=r"--dtype float64: .* give --dtype float32"):
            hidden_states(asked, "train", "mean")
    # Other rows are not taken for these.
    part = Part(prepared.train.examples[::-1], prepared.train.rows[::-1])
    other = task(replace(prepared, train=part), tmp_path)
    assert hidden_states(other, "train", "mean") == pytest.approx(whole[::-1], rel=1e-4, abs=1e-5)


# Methods


def test_longest_is_by_response_tokens(prepared: Prepared, tmp_path: Path) -> None:
    ranking = rank(task(prepared, tmp_path), "longest")
    lengths = [sum(row.response) for row in prepared.train.rows]
    assert [lengths[i] for i in ranking.order] == sorted(lengths, reverse=True)
    assert ranking.scores is not None
    assert ranking.scores.tolist() == lengths
    assert ranking.flops == 0


def test_kcenter_takes_the_row_farthest_from_all_taken(prepared: Prepared, tmp_path: Path) -> None:
    asked = task(prepared, tmp_path)
    order = list(rank(asked, "kcenter").order)

    def greedy(weighting: Any) -> list[int]:
        points = hidden_states(asked, "train", weighting).astype(np.float64)
        apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
        taken = order[:1]
        while len(taken) < 12:
            left = sorted(set(range(len(points))) - {*taken})
            taken.append(max(left, key=lambda i: apart[i, taken].min()))
        return taken

    assert order[:12] == greedy("mean") != greedy("weighted")


def test_rds_serves_every_target_row(prepared: Prepared, tmp_path: Path) -> None:
    asked = task(prepared, tmp_path, budget=str(len(prepared.target)))
    chosen = choose(asked, "rds+").indices
    similarity = cosine(
        hidden_states(asked, "train", "weighted"), hidden_states(asked, "target", "weighted")
    )
    taken: list[int] = []
    for j in range(len(prepared.target)):
        taken.append(max(set(range(len(similarity))) - {*taken}, key=lambda i: similarity[i, j]))
    assert chosen == taken


def test_bm25_finds_a_row_by_its_words(prepared: Prepared, tmp_path: Path) -> None:
    aim = prepared.train.examples[7]
    part = Part((aim,), (prepared.train.rows[7],))
    ranking = rank(task(replace(prepared, target=part), tmp_path), "bm25")
    order = list(ranking.order)
    assert order[0] == 7
    assert ranking.scores is not None
    assert order == sorted(range(len(order)), key=lambda i: -ranking.scores[i])  # pyright: ignore[reportOptionalSubscript]


def test_random_is_the_draw_of_old(prepared: Prepared, tmp_path: Path) -> None:
    for seed, budget in ((0, "5"), (3, "20%"), (7, "300t")):
        asked = task(prepared, tmp_path, seed=seed, budget=budget)
        assert choose(asked, "random").indices == draw(prepared.train, parse_budget(budget), seed)
    order = np.random.default_rng((3, 17)).permutation(len(prepared.train)).tolist()
    assert choose(task(prepared, tmp_path, seed=3), "random").indices == order[:5]


@pytest.mark.parametrize("method", HERE)
@pytest.mark.slow
def test_every_method_ranks_every_row_once(method: str, prepared: Prepared, tmp_path: Path) -> None:
    n = len(prepared.train)
    first, again = (rank(task(prepared, tmp_path / str(k)), method) for k in range(2))
    order = list(first.order)
    assert sorted(order) == list(range(n))
    assert list(again.order) == order
    assert (first.scores is None) or first.scores.shape == (n,)
    assert (first.flops > 0) == (method not in ("random", "longest", "bm25"))
    kept = list(rank(task(prepared, tmp_path / "0"), method).order)  # from what is in the folder
    assert kept == order


@pytest.mark.parametrize("method", ["random", "kcenter"])
def test_another_seed_is_another_choice(method: str, prepared: Prepared, tmp_path: Path) -> None:
    chosen = [choose(task(prepared, tmp_path, seed=s), method).indices for s in range(2)]
    assert chosen[0] != chosen[1]


def test_filters_apply_to_any_method(prepared: Prepared, tmp_path: Path) -> None:
    for method in ("random", "kcenter"):
        asked = task(prepared, tmp_path, budget="12", config=SelectionConfig(stratify=True))
        of = Counter(example.group for example in prepared.train.examples)
        found = Counter(prepared.train.examples[i].group for i in choose(asked, method).indices)
        for group, size in of.items():
            assert abs(found[group] - 12 * size / len(prepared.train)) < 1
    twice = Part([*prepared.train.examples] * 2, [*prepared.train.rows] * 2)
    doubled = replace(prepared, train=twice)
    n = len(prepared.train)
    asked = task(doubled, tmp_path, budget="15", config=SelectionConfig(dedup=1.0))
    chosen = choose(asked, "random").indices
    assert len({i % n for i in chosen}) == 15
    asked = task(doubled, tmp_path, budget="60%", config=SelectionConfig(dedup=1.0))
    with pytest.raises(UserError, match=rf"--budget 60%: only {n} of the {2 * n} training rows"):
        choose(asked, "random")


def test_a_choice_is_made_once(prepared: Prepared, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = choose_once(run, "chosen", task(prepared, tmp_path), "longest")
    assert first["scores"] == sorted(first["scores"], reverse=True)
    assert [len(d) for d in first["digests"]] == [64] * 5
    assert choose_once(run, "chosen", task(prepared, tmp_path, seed=9), "random") == first


def test_the_time_of_interrupted_calls_counts(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        time.sleep(0.05)
        raise KeyboardInterrupt

    run = RunFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "choose", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                choose_once(run, "chosen", task(prepared, tmp_path), "longest")
    assert choose_once(run, "chosen", task(prepared, tmp_path), "longest")["seconds"] > 0.1


# Wrong inputs


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        (
            "best",
            {},
            "--method best: unknown; the methods are random, best-of, swaps, winnow, longest",
        ),
        ("random", {"dedup": 1.5}, "--dedup 1.5: a similarity, must lie between 0"),
        ("random", {"dedup": -0.1}, "--dedup -0.1"),
        ("random", {"warmup_share": 0.0}, "--warmup-share 0: a share of the rows"),
        ("random", {"warmup_share": 1.5}, "--warmup-share 1.5: a share of the rows"),
        ("random", {"tries": 0}, "--tries 0: must be at least 1"),
        ("random", {"warmup_epochs": 0}, "--warmup-epochs 0: must be at least 1"),
        ("random", {"projection_dim": 0}, "--projection-dim 0: must be at least 1"),
        ("random", {"weight_passes": 0}, "--weight-passes 0: must be at least 1"),
    ],
)
def test_wrong_settings_are_named(method: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_method(method, SelectionConfig(**config))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(
        UserError, match=r'--start-by bm25: needs the package bm25s.*`pip install "nacd\[select\]"`'
    ):
        check_method("bm25", SelectionConfig(), "--start-by")
    with pytest.raises(UserError, match=r"--dedup 0\.8: needs the package datasketch"):
        check_method("random", SelectionConfig(dedup=0.8))
    check_method("random", SelectionConfig())


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].needs_target])
def test_a_method_without_its_target_rows(method: str, prepared: Prepared, tmp_path: Path) -> None:
    without = task(replace(prepared, target=Part((), ())), tmp_path)
    with pytest.raises(
        UserError, match=rf"--method {re.escape(method)}: needs target rows.*--target-rows"
    ):
        rank(without, method)


def test_strata_without_groups(prepared: Prepared, tmp_path: Path) -> None:
    examples = tuple(replace(example, group="") for example in prepared.train.examples)
    part = Part(examples, prepared.train.rows)
    asked = task(replace(prepared, train=part), tmp_path, config=SelectionConfig(stratify=True))
    with pytest.raises(UserError, match=r"--stratify: no row has a group.*--group-column"):
        choose(asked, "random")


def test_the_methods_that_there_are() -> None:
    aware = ["bm25", "rds+", "less", "trajectory"]
    assert list(METHODS) == ["random", "best-of", "swaps", "winnow", "longest", "kcenter", *aware]
    assert [m for m in METHODS if METHODS[m].needs_target] == aware
    assert [m for m in METHODS if METHODS[m].orders] == ["random", "best-of"]
    assert [m for m in METHODS if METHODS[m].package] == ["bm25"]
