"""The outer loop's guards, its optimiser and its state, with meta-gradients put in by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nacd.data import Encoded
from nacd.data.pseudo import make_pseudo_data
from nacd.distillation import outer as module
from nacd.distillation.outer import PATIENCE, DivergedError, OuterConfig, OuterLoop, Segment
from nacd.distillation.projection import Nearest, Simplex
from nacd.meta import FirstOrder, MetaGradient

WIDTH = 4


def make_loop(**changes: float) -> OuterLoop:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, WIDTH, generator=generator)
    row = Encoded((1, 2, 3, 4), (False, False, False, True), (0, 3))
    pseudo = make_pseudo_data([row], "prompt", pad_id=0)
    allowed = torch.ones(20, dtype=torch.bool)
    projection = Nearest(table[pseudo.ids].clone(), table, allowed)
    config = OuterConfig(**({"step_size": 0.1} | changes))  # pyright: ignore[reportArgumentType]
    return OuterLoop(pseudo, projection, FirstOrder(), config, table, allowed, 1e-3, 10)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decide what `meta_gradient` gives."""

    def set_to(
        gradient: Tensor, value: float = 1.0, rate: float = 0.0, growth: float = 1.0
    ) -> None:
        def fake(*_: Any, **__: Any) -> MetaGradient:
            zeros = torch.zeros(1)
            rate_gradient = torch.tensor(rate)
            return MetaGradient(
                value, rate_gradient, zeros, zeros, [0.5], [1.0, growth], vectors=gradient
            )

        monkeypatch.setattr(module, "meta_gradient", fake)

    return set_to


SEGMENT = Segment(None, None, [[0]], None)  # pyright: ignore[reportArgumentType]


def test_the_move_is_that_of_torch_adam(answer: Callable[..., None]) -> None:
    loop = make_loop()
    leaf = loop.projection.parameters.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        gradient = torch.nn.functional.normalize(torch.randn(3, WIDTH, generator=generator))
        answer(gradient)
        loop.step([SEGMENT])
        leaf.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(loop.projection.parameters, leaf.detach())


def test_a_shared_scale_moves_entries_by_their_gradients_size(
    answer: Callable[..., None],
) -> None:
    loop = make_loop(shared_scale=True)
    before = loop.projection.parameters.clone()
    gradient = torch.ones(3, WIDTH)
    gradient[1, 2] = -5.0
    answer(gradient)
    loop.step([SEGMENT])
    root = (gradient**2).mean().sqrt()
    expected = before - 0.1 * gradient / root
    torch.testing.assert_close(loop.projection.parameters, expected)


@pytest.mark.parametrize(
    "bad",
    [
        {"gradient": torch.full((3, WIDTH), math.nan)},
        {"gradient": torch.ones(3, WIDTH), "value": math.nan},
        {"gradient": torch.ones(3, WIDTH), "growth": 1e9},
    ],
)
def test_a_useless_gradient_is_skipped_then_learning_stops(
    bad: dict[str, Any], answer: Callable[..., None]
) -> None:
    loop = make_loop()
    answer(torch.ones(3, WIDTH))
    loop.step([SEGMENT])
    good = loop.projection.parameters.clone()
    answer(**bad)
    for _ in range(PATIENCE - 1):
        assert loop.step([SEGMENT])["skipped"] == 1.0
        assert torch.equal(loop.projection.parameters, good)
    with pytest.raises(DivergedError, match=r"Lower --learning-rate, or shorten --window"):
        loop.step([SEGMENT])
    assert torch.equal(loop.projection.parameters, good)


def test_one_good_step_ends_a_row_of_bad_ones(answer: Callable[..., None]) -> None:
    loop = make_loop()
    answer(torch.full((3, WIDTH), math.nan))
    for _ in range(PATIENCE - 1):
        loop.step([SEGMENT])
    assert loop.skipped == PATIENCE - 1
    answer(torch.ones(3, WIDTH))
    assert "skipped" not in loop.step([SEGMENT])
    assert loop.skipped == 0


def test_a_vanished_learning_rate_stops(answer: Callable[..., None]) -> None:
    loop = make_loop(rate_step_size=1.0)
    answer(torch.ones(3, WIDTH), rate=1.0)
    for _ in range(6):
        loop.step([SEGMENT])
    with pytest.raises(DivergedError, match="wants no training at all"):
        loop.step([SEGMENT])
    assert loop.learning_rate > 0
    loop = make_loop(rate_step_size=1.0)
    answer(torch.ones(3, WIDTH), rate=-1.0)
    for _ in range(6):
        loop.step([SEGMENT])
    with pytest.raises(DivergedError, match=r"went to 1\.1: the objective knows no end of it"):
        loop.step([SEGMENT])


def test_a_leap_is_scaled_down_to_the_median(answer: Callable[..., None]) -> None:
    loop, calm = make_loop(), torch.ones(3, WIDTH)
    for _ in range(4):
        answer(calm)
        loop.step([SEGMENT])
    before = loop.adam.m.clone()
    answer(1000 * calm)
    loop.step([SEGMENT])
    added = (loop.adam.m - 0.9 * before) / 0.1
    torch.testing.assert_close(added, module.JUMP * calm)


def test_a_second_step_that_leaps_is_held_against_the_first(answer: Callable[..., None]) -> None:
    """Of two lengths the smaller is the median, and the rate's gradient shrinks with the rest."""
    loop, calm = make_loop(rate_step_size=0.1), torch.ones(3, WIDTH)
    answer(calm, rate=1.0)
    loop.step([SEGMENT])
    before, rate_before = loop.adam.m.clone(), float(loop.rate_adam.m)
    answer(1000 * calm, rate=50.0)
    loop.step([SEGMENT])
    added = (loop.adam.m - 0.9 * before) / 0.1
    torch.testing.assert_close(added, module.JUMP * calm)
    added_rate = (float(loop.rate_adam.m) - 0.9 * rate_before) / 0.1
    assert added_rate == pytest.approx(50.0 * module.JUMP / 1000, rel=1e-4)


def test_the_regulariser_pulls_to_the_nearest_row(answer: Callable[..., None]) -> None:
    loop = make_loop(beta=1.0, step_size=0.01)
    start = loop.projection.parameters.clone()
    loop.projection.parameters = start + 0.05
    answer(torch.full((3, WIDTH), 1e-12))
    distances = [loop.step([SEGMENT])["neighbour_distance"] for _ in range(10)]
    assert distances[-1] < 0.2 * distances[0]


def test_a_saved_state_goes_on_alike(answer: Callable[..., None]) -> None:
    one, two = make_loop(rate_step_size=0.01), make_loop(rate_step_size=0.01)
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(3, WIDTH, generator=generator) for _ in range(8)]
    for i, gradient in enumerate(gradients):
        answer(gradient, rate=0.3)
        one.step([SEGMENT])
        if i == 4:
            two.restore({k: v.clone() for k, v in one.state().items()})
        if i > 4:
            two.step([SEGMENT])
    assert two.state().keys() == one.state().keys()
    for name, tensor in one.state().items():
        assert torch.equal(tensor, two.state()[name]), name


def feed(monkeypatch: pytest.MonkeyPatch, found: list[MetaGradient]) -> None:
    """Meta-gradients one after the other."""
    coming = iter(found)
    monkeypatch.setattr(module, "meta_gradient", lambda *_, **__: next(coming))


def of(gradient: Tensor, rate: float = 0.0, value: float = 1.0) -> MetaGradient:
    zeros = torch.zeros(1)
    slope = torch.tensor(rate)
    return MetaGradient(value, slope, zeros, zeros, [0.5], [1.0, 1.0], vectors=gradient)


def test_rate_is_torch_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(rate_step_size=0.1)
    leaf = torch.tensor(math.log(1e-3), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([leaf], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    slopes = (0.3, -0.2, 0.5, 0.1)
    feed(monkeypatch, [of(torch.ones(3, 4), s) for s in slopes])
    for s in slopes:
        loop.step([SEGMENT])
        leaf.grad = torch.tensor(s, dtype=torch.float64)
        adam.step()
        assert float(loop.log_rate) == pytest.approx(float(leaf.detach()), rel=1e-6)


def test_segments_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.ones(3, 4), torch.arange(12.0).view(3, 4)
    loop = make_loop(rate_step_size=0.1)
    feed(monkeypatch, [of(a, 1.0, 2.0), of(b, 4.0, 4.0)])
    assert loop.step([SEGMENT] * 2)["objective"] == 3.0
    torch.testing.assert_close(loop.adam.m, 0.1 * (a + b) / 2)
    assert float(loop.rate_adam.m) == pytest.approx(0.25)
    loop = make_loop()
    feed(monkeypatch, [of(torch.full((3, 4), math.nan)), of(b)])
    assert "skipped" not in loop.step([SEGMENT] * 2)
    torch.testing.assert_close(loop.adam.m, 0.1 * b)


def test_a_segment_of_no_use_counts_in_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the vectors' and the rate's gradient, nor in what is said of the step."""
    a, b = torch.ones(3, 4), torch.arange(12.0).view(3, 4)
    bad = [
        of(a, 1.0, math.nan),
        of(a * math.inf, 1.0, 9.0),
        of(a, math.nan, 9.0),
        replace(of(a, 1.0, 9.0), cotangent_norms=[1.0, math.nan]),
        replace(of(a, 1.0, 9.0), cotangent_norms=[1.0, 1e9]),
    ]
    for wrong in bad:
        loop = make_loop(rate_step_size=0.1)
        feed(monkeypatch, [of(a, 1.0, 2.0), wrong, of(b, 4.0, 4.0)])
        found = loop.step([SEGMENT] * 3)
        assert (found["objective"], found["inner_loss_end"]) == (3.0, 0.5)
        assert found["segments_skipped"] == 1.0
        assert found["cotangent_growth"] == max(module._growth(wrong), 1.0)
        torch.testing.assert_close(loop.adam.m, 0.1 * (a + b) / 2)
        assert float(loop.rate_adam.m) == pytest.approx(0.25)
    loop = make_loop()
    feed(monkeypatch, bad[:2])
    found = loop.step([SEGMENT] * 2)
    assert found["skipped"] == 1.0
    assert all(math.isnan(found[key]) for key in ("objective", "meta_gradient_norm"))


def test_a_gradient_of_exactly_0_is_not_called_stiff(answer: Callable[..., None]) -> None:
    loop = make_loop()
    answer(torch.zeros(3, WIDTH))
    for _ in range(PATIENCE - 1):
        loop.step([SEGMENT])
    with pytest.raises(DivergedError, match=r"exactly 0: .* Raise --window, or lower --warmup"):
        loop.step([SEGMENT])


def test_a_resumed_simplex_keeps_its_candidates(answer: Callable[..., None]) -> None:
    """They are the model's guesses: elsewhere, rounding may give others, or another order."""

    def make(choices: list[list[int]]) -> OuterLoop:
        loop = make_loop()
        logits = torch.tensor([[2.0, 1.0, 0.0]] * 3)
        loop.projection = Simplex(logits, torch.tensor(choices), loop.table)
        loop.adam = module.Adam(torch.zeros(3, 3), torch.zeros(3, 3))
        return loop

    one = make([[1, 5, 6], [2, 7, 8], [3, 9, 10]])
    answer(torch.ones(3, WIDTH))
    one.step([SEGMENT])
    two = make([[1, 6, 5], [2, 8, 7], [3, 11, 10]])
    two.restore(one.state())
    assert torch.equal(two.vectors(), one.vectors())
    two.projection.parameters = one.projection.parameters = torch.tensor([[0.0, 1.0, 0.0]] * 3)
    assert two.projection.tokens().tolist() == [5, 7, 9]


def test_beta_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(beta=0.3)
    p = loop.projection.parameters + 0.05
    loop.projection.parameters = p
    g = torch.full((3, 4), 0.01)
    feed(monkeypatch, [of(g)])
    loop.step([SEGMENT])
    t = loop.table
    rows = t[((p[:, None] - t) ** 2).sum(2).argmin(1)]
    scale = sum(float(r @ r) for r in t) / len(t)
    torch.testing.assert_close(loop.adam.m, 0.1 * (g + 0.3 * 2 * (p - rows) / (len(p) * scale)))


def test_pull_at_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop()
    table = loop.table
    ch = torch.tensor([[1, 5, 6], [2, 7, 8], [3, 9, 10]])
    loop.projection = Simplex(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), ch, table
    )
    loop.adam = module.Adam(torch.zeros(3, 3), torch.zeros(3, 3))
    loop.done = 4
    g = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    feed(monkeypatch, [of(g)])
    leaf = loop.projection.parameters.clone().requires_grad_()
    heat = 1.0 * 0.05**0.4
    (torch.einsum("qc,qcd->qd", (leaf / heat).softmax(1), table[ch]) * g).sum().backward()
    loop.step([SEGMENT])
    assert leaf.grad is not None
    torch.testing.assert_close(loop.adam.m, 0.1 * leaf.grad)
