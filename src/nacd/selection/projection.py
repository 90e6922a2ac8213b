"""A sparse random projection S: R^P -> R^k that keeps inner products, at the price of one look-up.

A blocked CountSketch. The P coordinates are cut into blocks of k; in every block a random
permutation gives each coordinate a bucket of its own, a random sign, and buckets are summed:

    (S x)_h = sum over blocks b of  sign(b, h) * x[k b + perm_b(h)]

Signs are independent and two coordinates share a bucket with probability 1/k (those of one block
never), so, as for CountSketch (Charikar, Chen and Farach-Colton 2002; arXiv 0902.2206),

    E <Sx, Sy> = <x, y>        Var <Sx, Sy> <= (|x|^2 |y|^2 + <x, y>^2) / k

which is also the bound of a dense projection by random signs, at P additions instead of P k. The
cosine of two projected vectors is off by a standard deviation of about (1 - cos^2) / sqrt(k), and
for P <= k not at all.

One nonzero a coordinate is enough here. More (sparse JL) leave the variance as it is, cost as many
times more, and only lighten the tails for vectors of which a few entries make up the norm (arXiv
1805.08539). Adam's directions are not of that kind: Cauchy-Schwarz bounds every entry by
(1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)), 7.3 at the usual constants, whatever the gradients were.

The draw is made on the CPU, so it is the same on every device. There are no atomic additions: a
look-up, a product and a sum in a fixed order, deterministic on CUDA too.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

KIND = "blocked-countsketch"


class Projection:
    """The seeded linear map S; see the module's docstring.

    Attributes:
        size: P, the length of what is projected.
        dim: k, the length that it is projected to.
    """

    def __init__(self, size: int, dim: int, seed: int, device: torch.device | str = "cpu"):
        if size < 1 or dim < 1:
            raise ValueError(f"a projection from {size} to {dim} entries")
        self.size, self.dim, self.seed = size, dim, seed
        blocks = -(-size // dim)
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 8192))))
        index = np.tile(np.arange(dim, dtype=np.int32), (blocks, 1))
        generator.permuted(index, axis=1, out=index)
        index += np.arange(blocks, dtype=np.int32)[:, None] * dim
        sign = 2 * generator.integers(0, 2, (blocks, dim), dtype=np.int8) - 1
        beyond = index >= size  # the last block is not full: its empty places count 0
        index[beyond], sign[beyond] = 0, 0
        self.sha256 = hashlib.sha256(index.tobytes() + sign.tobytes()).hexdigest()
        self._index = torch.from_numpy(index).flatten().to(device)
        self._sign = torch.from_numpy(sign).flatten().to(device)
        self._terms = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """S x, (k,), in the number format of x (P,), on whose device S must be."""
        if x.shape != (self.size,):
            raise ValueError(f"a vector of {tuple(x.shape)} for a projection from {self.size}")
        if self._terms.dtype != x.dtype or not len(self._terms):
            self._terms = torch.empty(self._index.shape, dtype=x.dtype, device=x.device)
            self._sign = self._sign.to(x.dtype)  # int8 would double the time of the product
        torch.index_select(x, 0, self._index, out=self._terms)
        return self._terms.mul_(self._sign).view(-1, self.dim).sum(0)

    def describe(self) -> dict[str, Any]:
        """What features of two projections are told apart by."""
        return {
            "kind": KIND,
            "seed": self.seed,
            "dim": self.dim,
            "size": self.size,
            "sha256": self.sha256,
        }
