"""Nearest rows against a dense brute force; the regulariser against finite differences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nacd.distillation import neighbours
from nacd.distillation.neighbours import Metric, candidates, nearest, regulariser


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense(vectors: torch.Tensor, table: torch.Tensor, metric: Metric) -> torch.Tensor:
    """All distances (Q, V), the slow way."""
    if metric == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(vectors[:, None], table[None], dim=2)
    return ((vectors[:, None] - table[None]) ** 2).sum(2)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 40, 333, 5000, 16_000_000])
def test_candidates_equal_a_dense_search(
    metric: Metric, masked: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    table, vectors = draw(97, 6), draw(23, 6, seed=1)
    distance = dense(vectors, table, metric)
    allowed = None
    if masked:
        allowed = torch.rand(97, generator=torch.Generator().manual_seed(2)) < 0.5
        distance[:, ~allowed] = torch.inf
    found = candidates(vectors, table, 5, allowed, metric)
    torch.testing.assert_close(found, distance.topk(5, dim=1, largest=False).indices)
    torch.testing.assert_close(nearest(vectors, table, allowed, metric), distance.argmin(1))


def test_a_row_of_the_table_is_its_own_nearest() -> None:
    table = draw(50, 8)
    torch.testing.assert_close(nearest(table, table), torch.arange(50))


@pytest.mark.parametrize("chunk", [8, 16_000_000])
def test_a_tie_goes_to_one_of_the_tied(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    table = draw(12, 4)
    table[9] = table[2]
    found = candidates(table[[2, 9]], table, 2)
    assert {frozenset(row) for row in found.tolist()} == {frozenset({2, 9})}


def test_the_mask_excludes_the_tied_row() -> None:
    table = draw(12, 4)
    table[9] = table[2]
    allowed = torch.ones(12, dtype=torch.bool)
    allowed[2] = False
    assert nearest(table[2:3], table, allowed).tolist() == [9]


def test_a_16_bit_table_is_searched_in_the_vectors_format() -> None:
    table = draw(40, 6).to(torch.bfloat16)
    vectors = draw(9, 6, seed=3)
    expected = dense(vectors, table.double(), "euclidean").argmin(1)
    torch.testing.assert_close(nearest(vectors, table), expected)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_regulariser_and_its_gradient(metric: Metric) -> None:
    vectors, rows = draw(7, 5), draw(7, 5, seed=1)
    scale = 2.5
    value, gradient = regulariser(vectors, rows, metric, scale)
    if metric == "cosine":
        expected = sum(
            1 - float(v @ r) / float(v.norm() * r.norm())
            for v, r in zip(vectors, rows, strict=True)
        )
    else:
        expected = float(((vectors - rows) ** 2).sum()) / scale
    assert value == pytest.approx(expected / 7, rel=1e-12)
    numeric = torch.zeros_like(vectors)
    for i in range(vectors.numel()):
        bump = torch.zeros_like(vectors)
        bump.view(-1)[i] = 1e-6
        up, _ = regulariser(vectors + bump, rows, metric, scale)
        down, _ = regulariser(vectors - bump, rows, metric, scale)
        numeric.view(-1)[i] = (up - down) / 2e-6
    torch.testing.assert_close(gradient, numeric, rtol=1e-7, atol=1e-9)


MEMORY = """
import torch
from pathlib import Path
from nacd.distillation.neighbours import candidates, nearest

def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024

torch.set_num_threads(1)
candidates(torch.randn(3, 640), torch.randn(50, 640), 4)  # libraries are loaded now
table, vectors = torch.randn(262144, 640), torch.randn(2000, 640)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
nearest(vectors, table, torch.ones(262144, dtype=torch.bool))
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux")
def test_the_largest_vocabulary_needs_under_500_mb() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500e6, done.stdout


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_place_may_keep_its_own_id(metric: Metric) -> None:
    """Whether it may be chosen elsewhere or not, and where another row is just as near."""
    table = draw(12, 4)
    table[9] = table[2]
    allowed = torch.ones(12, dtype=torch.bool)
    allowed[5] = False
    own = torch.tensor([5, 9, 2, 5, 5])
    vectors = table[torch.tensor([5, 9, 9, 3, 4])]
    assert nearest(vectors, table, allowed, metric, own).tolist() == [5, 9, 2, 3, 4]
    assert nearest(vectors, table, allowed, metric)[0] != 5


def test_more_neighbours_than_rows_are_refused() -> None:
    """Not filled up with rows that must not be chosen."""
    table, allowed = draw(12, 4), torch.arange(12) < 3
    assert candidates(table[:2], table, 3, allowed).max() < 3
    with pytest.raises(ValueError, match="4 nearest rows of 3"):
        candidates(table[:2], table, 4, allowed)
