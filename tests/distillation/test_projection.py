"""Each projection's pull-back against autograd, and what it reads out."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nacd.distillation.projection import Nearest, Simplex, StraightThrough, simplex_logits

ROWS, WIDTH, QUERIES, COUNT = 40, 6, 11, 5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def simplex() -> Simplex:
    generator = torch.Generator().manual_seed(5)
    choices = torch.stack(
        [torch.randperm(ROWS, generator=generator)[:COUNT] for _ in range(QUERIES)]
    )
    return Simplex(draw(QUERIES, COUNT, seed=1), choices, draw(ROWS, WIDTH))


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_simplex_pull_equals_autograd(progress: float) -> None:
    projection, weight = simplex(), draw(QUERIES, WIDTH, seed=2)
    logits = projection.parameters.clone().requires_grad_()
    heat = projection.temperature(progress)
    rows = projection.table[projection.candidates]  # (Q, C, d)
    vectors = torch.einsum("qc,qcd->qd", (logits / heat).softmax(1), rows)
    torch.testing.assert_close(projection.vectors(progress), vectors.detach())
    (expected,) = torch.autograd.grad((weight * vectors).sum(), logits)
    torch.testing.assert_close(projection.pull(weight, progress), expected)


def test_the_simplex_ends_at_its_tokens() -> None:
    projection = simplex()
    projection.cold = 1e-3
    gaps = [
        float((projection.vectors(p) - projection.table[projection.tokens()]).norm())
        for p in (0.0, 0.5, 0.8, 1.0)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1
    assert gaps[-1] < 1e-6


def test_temperature_is_geometric_and_held_within_its_ends() -> None:
    projection = simplex()
    assert projection.temperature(0.0) == projection.hot
    assert projection.temperature(0.5) == pytest.approx((projection.hot * projection.cold) ** 0.5)
    assert projection.temperature(1.5) == pytest.approx(projection.cold)
    assert projection.temperature(-1.0) == projection.hot


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_the_seed_starts_with_its_share(share: float) -> None:
    choices = simplex().candidates
    probabilities = simplex_logits(choices, choices[:, 0], share).softmax(1)
    torch.testing.assert_close(probabilities[:, 0], torch.full((QUERIES,), share))
    torch.testing.assert_close(
        probabilities[:, 1:], torch.full((QUERIES, COUNT - 1), (1 - share) / (COUNT - 1))
    )


def test_the_seed_must_be_the_first_candidate() -> None:
    choices = simplex().candidates
    with pytest.raises(ValueError, match="first candidate"):
        simplex_logits(choices, choices[:, 1], 0.5)


def test_straight_through_shows_rows_and_passes_the_gradient() -> None:
    table = draw(ROWS, WIDTH)
    allowed = torch.ones(ROWS, dtype=torch.bool)
    allowed[:7] = False
    projection = StraightThrough(draw(QUERIES, WIDTH, seed=3), table, allowed)
    tokens = projection.tokens()
    assert bool(allowed[tokens].all())
    assert torch.equal(projection.vectors(0.3), table[tokens])
    gradient = draw(QUERIES, WIDTH, seed=4)
    assert torch.equal(projection.pull(gradient, 0.3), gradient)


def test_nearest_learns_the_vectors_themselves() -> None:
    table = draw(ROWS, WIDTH)
    picked = torch.arange(QUERIES) + 9
    projection = Nearest(
        table[picked] + 1e-3 * draw(QUERIES, WIDTH, seed=5),
        table,
        torch.ones(ROWS, dtype=torch.bool),
    )
    assert projection.vectors(0.0) is projection.parameters
    assert torch.equal(projection.tokens(), picked)


def test_tokens_where_the_logits_are_on_an_accelerator() -> None:
    with FakeTensorMode():  # knows devices that are not there, and refuses to mix them
        logits, table = torch.empty(5, 3, device="cuda"), torch.empty(9, 4, device="cuda")
        found = Simplex(logits, torch.empty(5, 3, dtype=torch.int64), table).tokens()
        assert (found.device.type, tuple(found.shape)) == ("cpu", (5,))


@pytest.mark.parametrize("kind", [Nearest, StraightThrough])
def test_vectors_that_have_not_moved_are_the_seeds_own_tokens(kind: type[Nearest]) -> None:
    """Though some of them may not be chosen (pieces of characters), and some have doubles."""
    table = draw(ROWS, WIDTH)
    table[7] = table[3]
    allowed = torch.ones(ROWS, dtype=torch.bool)
    allowed[[5, 6]] = False
    own = torch.tensor([5, 3, 7, 6, 9])
    projection = kind(table[own].clone(), table, allowed, own=own)
    assert torch.equal(projection.tokens(), own)
    assert torch.equal(projection.vectors(0.0), table[own])
    projection.parameters = table[torch.tensor([9, 9, 9, 5, 6])].clone()
    assert projection.tokens()[:3].tolist() == [9, 9, 9]
    assert not set(projection.tokens()[3:].tolist()) & {5, 6}, "at another's place they may not"
