"""The doctor: what it accepts, what it refuses and how it says so, what it estimates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.costs.estimate import estimate
from nacd.data import Batch, Example, Message, encode_all, make_template
from nacd.data.rows import learnable_rows
from nacd.errors import UserError
from nacd.meta.diagnosis import (
    COSINE,
    EPS,
    ERROR,
    SHORT_EPS,
    Diagnosis,
    Row,
    Verdict,
    diagnose,
)
from nacd.model.lora import LoraModel, ModelConfig, load_model

Folder = Callable[[str], Path]
QUESTIONS = (
    ("What does a plant need to make food?", "sunlight and water"),
    ("Which animal lays eggs?", "a hen"),
    ("What is ice?", "water that is frozen"),
    ("Name the planet that is nearest to the sun.", "Mercury"),
    ("Is 7 prime?", "Yes, it is."),
    ("Why is the sky blue?", "it scatters light"),
)


def case(folder: Path, dtype: Any, **options: Any) -> tuple[LoraModel, list[Batch], Tensor]:
    """A model, two batches of real rows, and the vectors in them."""
    model = load_model(ModelConfig(model=str(folder), dtype=dtype, device="cpu", **options))
    examples = [
        Example((Message("user", question), Message("assistant", answer)), "test")
        for question, answer in QUESTIONS
    ]
    template = make_template("qa", model.tokenizer, examples)
    rows, _, _ = encode_all(template, examples, 200)
    pseudo = learnable_rows(rows, "prompt", model.tokenizer.pad_token_id)
    return (
        model,
        [pseudo.batch([0, 1, 2]), pseudo.batch([3, 4, 5])],
        model.embed(pseudo.ids).float(),
    )


def best(diagnosis: Diagnosis, engine: str) -> Row:
    return max((r for r in diagnosis.rows if r.engine == engine), key=lambda r: r.agreement)


@pytest.mark.parametrize("thorough", [False, True])
def test_float32_is_accepted(tiny_folder: Folder, thorough: bool) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "float32")
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=thorough)
    assert diagnosis.verdict is not None
    assert diagnosis.verdict.engine == "first-order"
    assert best(diagnosis, "first-order").error < 1e-2
    assert diagnosis.reference == "exact"
    assert [r.eps for r in diagnosis.rows if r.engine == "first-order"] == (
        list(EPS) if thorough else [SHORT_EPS[0]]
    )
    assert {r.engine for r in diagnosis.rows} == (
        {"first-order", "one-sided", "exact"} if thorough else {"first-order", "exact"}
    )
    diagnosis.require()
    diagnosis.require("exact")
    diagnosis.require("tesla")
    text = diagnosis.describe()
    assert "--engine first-order --fd-eps" in text
    assert "--dtype float32" in text


@pytest.mark.parametrize("thorough", [False, True])
def test_bfloat16_takes_exact(tiny_folder: Folder, thorough: bool) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "bfloat16")
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=thorough)
    assert diagnosis.reference == "exact in float32"
    assert diagnosis.verdict == Verdict("exact", None)
    assert best(diagnosis, "exact").error > 1e-3  # its rounding is real
    assert "to the same weights in float32" in diagnosis.reason
    tried = [row.engine for row in diagnosis.rows]
    assert tried.count("first-order") == (len(EPS) if thorough else 0)
    assert {p.dtype for p in model.hf.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_difference_in_bfloat16_is_measured_and_refused(tiny_folder: Folder) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "bfloat16")
    asked = ("one-sided", 2e-3)
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=False, asked=asked)
    assert best(diagnosis, "one-sided").agreement < COSINE
    with pytest.raises(UserError, match=r"--engine one-sided .*in float32; use --engine exact"):
        diagnosis.require(*asked)


def test_bfloat16_under_checkpointing_takes_a_long_step_or_none(tiny_folder: Folder) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "bfloat16", gradient_checkpointing=True)
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=False)
    assert diagnosis.reference == "first-order in float32"
    right = [row.eps for row in diagnosis.rows if row.agreement >= COSINE and row.error <= ERROR]
    assert EPS[0] not in right
    if diagnosis.verdict is None:
        with pytest.raises(UserError, match=r"in bfloat16.*checkpointing\); .*--dtype float32"):
            diagnosis.require()
    else:
        assert diagnosis.verdict.eps in right
        with pytest.raises(UserError, match=r"--engine exact: .*gradient checkpointing; use"):
            diagnosis.require("exact")


@pytest.mark.parametrize("thorough", [False, True])
def test_checkpointing_leaves_agreement_between_step_lengths(
    tiny_folder: Folder, thorough: bool
) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "float32", gradient_checkpointing=True)
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=thorough)
    assert "gradient checkpointing" in diagnosis.reference
    assert diagnosis.verdict is not None
    assert diagnosis.verdict.engine == "first-order"
    plain = case(tiny_folder("gpt2"), "float32")
    expected = diagnose(plain[0], Recipe(), plain[1], plain[2], thorough=thorough)
    assert diagnosis.growth == pytest.approx(expected.growth, rel=1e-3)


def test_gradients_under_checkpointing_are_the_plain_ones(tiny_folder: Folder) -> None:
    plain, batches, vectors = case(tiny_folder("llama"), "float32")
    checkpointed = load_model(replace(plain.config, gradient_checkpointing=True))
    theta = plain.fresh_theta(0)
    theta += 0.05 * torch.sin(torch.arange(plain.size, dtype=theta.dtype))  # B is not 0
    found = checkpointed.value_and_grad(theta, batches[0], vectors, in_vectors=True)
    expected = plain.value_and_grad(theta, batches[0], vectors, in_vectors=True)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        checkpointed.loss_at(theta, batches[0], vectors)


def test_an_attention_without_double_backward(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("derivative for aten::_flash_backward is not implemented")

    monkeypatch.setattr(LoraModel, "loss_at", refuse)
    model, batches, vectors = case(tiny_folder("gpt2"), "float32")
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=False)
    assert "sdpa attention has no double backward" in diagnosis.reference
    assert diagnosis.verdict == Verdict("first-order", SHORT_EPS[0])


def test_a_stiff_inner_loop_is_refused(tiny_folder: Folder) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "float32")
    recipe = Recipe(optimizer="sgd", learning_rate=1e4, clip=0.0)
    diagnosis = diagnose(model, recipe, batches, vectors, thorough=True)
    assert diagnosis.verdict is None
    with pytest.raises(UserError, match="--learning-rate"):
        diagnosis.require()


@pytest.mark.parametrize("thorough", [False, True])
def test_the_short_form_costs_less_than_ten_steps(
    tiny_folder: Folder, thorough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in forward passes; a double backward is two more steps' worth."""
    model, batches, vectors = case(tiny_folder("gpt2"), "float32")
    passes: list[int] = []
    forward = LoraModel.token_nll

    def counted(self: LoraModel, *args: Any, **kwargs: Any) -> Tensor:
        passes.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LoraModel, "token_nll", counted)
    model.micro = 10_000  # a pass is a whole batch
    # how much memory is needed is looked up on a few tokens more
    monkeypatch.setattr("nacd.meta.diagnosis.free_memory", lambda device: None)
    diagnose(model, Recipe(), batches, vectors, thorough=thorough)
    assert (len(passes) + 2 < 10) is not thorough


def diagnosis_of(rows: tuple[Row, ...], verdict: Verdict | None) -> Diagnosis:
    return Diagnosis(
        model="/a/folder",
        dtype="float32",
        attention="sdpa",
        device="cpu",
        reference="first-order at the next eps (flash_attention_2 has no double backward)",
        rows=rows,
        verdict=verdict,
        reason="a reason that is long enough to be wrapped, more than once if need be, " * 3,
        growth=1.0,
        step_seconds=0.1,
    )


def test_it_is_told_at_80_columns() -> None:
    rows = (
        Row("first-order", 1e-2, 1.2e-3, 0.99999, 1.0, 3.1),
        Row("one-sided", 1e-3, 123.4, -0.12345, -1.0, 12.3),
        Row("exact", None, math.nan, math.nan, math.nan, 4.0),
    )
    for verdict in (Verdict("first-order", 1e-2), None):
        lines = diagnosis_of(rows, verdict).describe().splitlines()
        assert max(map(len, lines)) <= 80


def test_an_engine_asked_for_is_held_to_its_own_figures() -> None:
    rows = (
        Row("first-order", 1e-2, 1e-3, 0.9999, 1.0, 3.1),
        Row("one-sided", 1e-2, 0.9, 0.41, 0.99, 2.1),
    )
    diagnosis = diagnosis_of(rows, Verdict("first-order", 1e-2))
    diagnosis.require("first-order")
    diagnosis.require("tesla")
    with pytest.raises(UserError, match=r"--engine one-sided.*0\.41.*--engine first-order"):
        diagnosis.require("one-sided")


def test_the_engine_asked_for_is_measured(tiny_folder: Folder) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "float32")
    for eps, good in ((2e-3, True), (30.0, False)):
        diagnosis = diagnose(
            model, Recipe(), batches, vectors, thorough=False, asked=("one-sided", eps)
        )
        assert [row.eps for row in diagnosis.rows if row.engine == "one-sided"] == [eps]
        if good:
            diagnosis.require("one-sided", eps)
            continue
        with pytest.raises(UserError, match=r"--engine one-sided --fd-eps 30: .* cosine"):
            diagnosis.require("one-sided", eps)


def test_a_double_backward_that_cannot_be_had_is_refused(tiny_folder: Folder) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "float32", gradient_checkpointing=True)
    diagnosis = diagnose(model, Recipe(), batches, vectors, thorough=False)
    diagnosis.require("first-order")
    for engine in ("exact", "tesla"):
        with pytest.raises(UserError, match=f"--engine {engine}: .* gradient checkpointing"):
            diagnosis.require(engine)


def test_not_a_number_is_no_agreement() -> None:
    assert Row("exact", None, math.nan, math.nan, 1.0, 4.0).agreement == -1.0


def test_an_estimate_scales_with_what_is_planned(tiny_folder: Folder) -> None:
    model, batches, vectors = case(tiny_folder("gpt2"), "float32")
    recipe = Recipe(batch_size=3, epochs=4.0)

    def of(**options: Any) -> Any:
        return estimate(model, recipe, batches[0], vectors, rows=6, **options)

    plain = of(outer_steps=10, snapshots=5)
    assert plain.inner_steps == 8
    assert plain.seconds == pytest.approx(10 * plain.outer_seconds)
    assert plain.disk_bytes == 3 * vectors.numel() * 4 + 5 * 3 * model.size * 4
    assert plain.peak_bytes is None or plain.peak_bytes > 1e7
    windowed = of(outer_steps=10, window=3, segments=2, engine="one-sided")
    assert windowed.inner_steps == 6
    text = plain.describe()
    assert max(map(len, text.splitlines())) <= 80
    assert "an outer step of 8 inner steps" in " ".join(text.split())
