"""Low-rank products: adding them exactly, and the nearest one of a smaller rank (Eckart and Young, 1936)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Tensor = Any  # torch has no types here
LARGEST_EXACT = 1024
"""Matrices whose smaller side is at most this are decomposed exactly; larger ones by a randomized SVD."""
_OVERSAMPLING = 16
_ITERATIONS = 4
"""Iterations of the randomized SVD: with 4, its error is within a few parts per thousand of the optimum."""


@dataclass(frozen=True)
class Factors:
    """A product b a, where b is [out, rank] and a is [rank, in], in float32, and how near it is to its target."""

    b: Tensor
    a: Tensor
    squared_error: float
    """Squared Frobenius norm of the difference between b a and the target."""
    squared_norm: float
    """Squared Frobenius norm of the target."""

    @property
    def rank(self) -> int:
        found: int = self.a.shape[0]
        return found

    def padded(self, rank: int) -> Factors:
        """The same product with b and a padded with zeros to `rank`."""
        missing = rank - self.rank
        b = torch.nn.functional.pad(self.b, (0, missing))
        a = torch.nn.functional.pad(self.a, (0, 0, 0, missing))
        return Factors(b, a, self.squared_error, self.squared_norm)


def add(products: list[tuple[Tensor, Tensor]], rank: int) -> Factors:
    """The sum of the products b a, exact where `rank` is at least the sum of their ranks.

    Then b and a are theirs, concatenated. Else it is the nearest product of rank `rank`, from QR decompositions of both
    sides and the SVD of the small core between them; no [out, in] matrix is made.
    """
    b = torch.cat([b.double() for b, _ in products], dim=1)
    a = torch.cat([a.double() for _, a in products], dim=0)
    left, left_core = torch.linalg.qr(b)
    right, right_core = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    norm = float(s.square().sum())
    if b.shape[1] <= rank:
        return Factors(b.float(), a.float(), 0.0, norm)
    root = s[:rank].sqrt()
    near_b = left @ (u[:, :rank] * root)
    near_a = (root[:, None] * vh[: len(root)]) @ right.T
    return Factors(near_b.float(), near_a.float(), float(s[rank:].square().sum()), norm)


def nearest(matrix: Tensor, rank: int) -> Factors:
    """The product of rank `rank` nearest to an [out, in] matrix. Uses torch's global generator for large matrices."""
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= LARGEST_EXACT:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        wanted = min(rank + _OVERSAMPLING, *matrix.shape)
        u, s, v = torch.svd_lowrank(matrix, q=wanted, niter=_ITERATIONS)
        vh = v.T
    root = s[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * vh[:rank]
    error = torch.linalg.norm(matrix - b @ a).double().square()
    return Factors(
        b.contiguous(), a.contiguous(), float(error), float(torch.linalg.norm(matrix).double().square())
    )
