"""The sparse projection against its own matrix, and against the variance that theory gives it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nacd.selection.projection import Projection


def matrix(size: int, dim: int, seed: int) -> Tensor:
    """S written out, (k, P)."""
    projection = Projection(size, dim, seed)
    return torch.stack([projection(row) for row in torch.eye(size, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize(("size", "dim"), [(50, 16), (48, 16), (16, 16), (7, 16), (20, 1)])
def test_one_sign_a_coordinate_and_no_collision_within_a_block(size: int, dim: int) -> None:
    s = matrix(size, dim, 3)
    assert s.abs().sum(0).tolist() == [1.0] * size
    assert set(s.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    for block in s.split(dim, dim=1):
        assert float(block.abs().sum(1).max()) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear(dtype: torch.dtype) -> None:
    projection = Projection(1000, 64, 5)
    x, y = torch.randn(2, 1000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    both = projection(2 * x - 0.5 * y)
    assert both.dtype == dtype
    torch.testing.assert_close(both, 2 * projection(x) - 0.5 * projection(y))
    dense = matrix(1000, 64, 5) @ (2 * x - 0.5 * y).double()
    torch.testing.assert_close(both, dense.to(dtype), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)


def test_the_seed_alone_decides() -> None:
    x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    first, again, other = (Projection(300, 64, seed) for seed in (1, 1, 2))
    assert torch.equal(first(x), again(x))
    assert first.describe() == again.describe()
    assert not torch.equal(first(x), other(x))
    assert first.sha256 != other.sha256
    assert Projection(300, 65, 1).sha256 != first.sha256


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_cuda_and_the_same_each_time() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    there = Projection(100_000, 512, 1, "cuda")
    torch.testing.assert_close(there(x.cuda()).cpu(), Projection(100_000, 512, 1)(x))
    assert torch.equal(there(x.cuda()), there(x.cuda()))


def test_unbiased_with_the_variance_of_the_formula() -> None:
    size, dim, draws = 60, 16, 3000
    x, y = np.random.default_rng(0).normal(size=(2, size))
    y += 0.5 * x
    products = np.array(
        [
            float(s(torch.from_numpy(x)) @ s(torch.from_numpy(y)))
            for s in (Projection(size, dim, seed) for seed in range(draws))
        ]
    )
    # Coordinates of different blocks meet with probability 1/k; signs leave only the pairs.
    variance = sum(
        (x[i] * y[j] + x[j] * y[i]) ** 2 / 2 / dim
        for i in range(size)
        for j in range(size)
        if i // dim != j // dim
    )
    assert variance <= ((x @ x) * (y @ y) + (x @ y) ** 2) / dim  # the bound of the docstring
    assert abs(products.mean() - x @ y) < 4 * math.sqrt(variance / draws)
    assert products.var() == pytest.approx(variance, rel=0.1)


def test_norms_are_kept_in_expectation() -> None:
    x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    squares = torch.stack([Projection(5000, 64, seed)(x).square().sum() for seed in range(400)])
    spread = math.sqrt(2 / 64) * float(x @ x)
    assert float(squares.mean()) == pytest.approx(float(x @ x), abs=4 * spread / math.sqrt(400))


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9])
def test_the_error_of_a_cosine(cosine: float) -> None:
    size, dim, draws = 10_000, 256, 300
    x, z = np.linalg.qr(np.random.default_rng(2).normal(size=(size, 2)))[0].T
    y = cosine * x + math.sqrt(1 - cosine**2) * z
    errors = []
    for seed in range(draws):
        s = Projection(size, dim, seed)
        a, b = s(torch.from_numpy(x)), s(torch.from_numpy(y))
        errors.append(float(torch.cosine_similarity(a, b, dim=0)) - cosine)
    assert np.std(errors) == pytest.approx((1 - cosine**2) / math.sqrt(dim), rel=0.15)


def test_exact_where_nothing_is_left_out() -> None:
    x, y = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = Projection(100, 128, 0)
    assert float(s(x) @ s(y)) == pytest.approx(float(x @ y), rel=1e-12)


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(99,\) for a projection from 100"):
        Projection(100, 8, 0)(torch.zeros(99))
    with pytest.raises(ValueError, match="from 0 to 8"):
        Projection(0, 8, 0)
