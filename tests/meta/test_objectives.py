"""Objectives against autograd, and the windows that they are pulled back through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.func import functional_call

from nacd.config.recipe import Recipe
from nacd.data import Encoded, bucketed
from nacd.data.pseudo import make_pseudo_data
from nacd.distillation.outer import Segment
from nacd.distillation.segments import windowed
from nacd.meta import InnerLoop, Start, initial_state
from nacd.meta.objectives import target_objective, trajectory_objective
from nacd.model.lora import LoraModel, ModelConfig, load_model

Folder = Callable[[str], Path]
LENGTHS = (5, 9, 6, 8, 7)
ROWS = [
    Encoded(
        tuple(3 + (i * j) % 17 for j in range(1, n + 1)),
        tuple(j >= n - 1 - i % 2 for j in range(n)),
        (1, 3),
    )
    for i, n in enumerate(LENGTHS, 1)
]


@pytest.fixture
def model(tiny_folder: Folder) -> LoraModel:
    config = ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=2, device="cpu", dtype="float64")
    return load_model(config)


def test_the_gradient_to_an_experts_goal_is_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, start, goal = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    value, gradient = trajectory_objective(start, goal)(theta)
    leaf = theta.clone().requires_grad_()
    loss = (leaf - goal).pow(2).sum() / (start - goal).pow(2).sum()
    loss.backward()
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=0)


def test_the_target_loss_is_a_mean_over_response_tokens(model: LoraModel) -> None:
    theta = model.fresh_theta(1) + 0.01
    batches = bucketed(ROWS, 2, model.tokenizer.pad_token_id)
    value, gradient = target_objective(model, batches)(theta)

    # one row at a time, without padding, through torch alone
    leaf = theta.clone().requires_grad_()
    parts = leaf.split([shape.numel() for shape in model.shapes])
    named = {
        name: part.view(shape)
        for name, part, shape in zip(model.names, parts, model.shapes, strict=True)
    }
    losses = []
    for row in ROWS:
        ids = torch.tensor([row.ids])
        logits = functional_call(model.hf, named, (), {"input_ids": ids}).logits[0, :-1]
        told = torch.tensor(row.response[1:])
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses.append(loss[told])
    mean = torch.cat(losses).mean()
    mean.backward()
    assert value == pytest.approx(float(mean.detach()), rel=1e-9)
    assert leaf.grad is not None
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-10)


def test_a_window_starts_where_the_student_is_by_then(model: LoraModel) -> None:
    recipe = Recipe(batch_size=1, epochs=1, learning_rate=1e-2, shuffle=False)
    pseudo = make_pseudo_data(ROWS, "prompt", model.tokenizer.pad_token_id)
    vectors = model.embed(pseudo.ids).double()
    log_rate = torch.tensor(-4.6, dtype=torch.float64)
    outer: Any = SimpleNamespace(pseudo=pseudo, log_rate=log_rate, vectors=lambda: vectors)
    loop = InnerLoop(model, recipe, len(ROWS))
    theta = model.fresh_theta(2)
    whole = Segment(
        loop,
        Start(theta, initial_state(recipe, theta)),
        [[i] for i in range(5)],
        lambda _: (0.0, _),
    )
    seen = set()
    for step in range(12):
        cut = windowed(whole, 2, step, outer)
        first = cut.order[0][0]
        seen.add(first)
        assert cut.order == [[first], [first + 1]]
        at, _ = loop.run(whole.start, [pseudo.batch([i]) for i in range(first)], log_rate, vectors)
        assert cut.start.count == first
        torch.testing.assert_close(cut.start.theta, at.theta, rtol=0, atol=0)
        for mine, theirs in zip(cut.start.state, at.state, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert seen == {0, 1, 2, 3}, "late windows too"
    assert windowed(whole, 0, 1, outer) is whole
    assert windowed(whole, 5, 1, outer) is whole
