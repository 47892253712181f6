"""The nearest Kronecker product of a delta, as LoKr stores it (Van Loan & Pitsianis 1993).

    D [m1 m2, n1 n2] ~ w1 [m1, n1] x w2 [m2, n2]

With every block [m2, n2] of D as a row, R [m1 n1, m2 n2], a Kronecker product is a matrix of rank one: its first
singular value and vectors give w1 = sqrt(s1) u1 and w2 = sqrt(s1) v1. Exact where D is a Kronecker product.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, isqrt
from typing import TYPE_CHECKING

from fluxsmith.adapters.extracting.factorise import frobenius_squared
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Kronecker", "factors_of", "nearest_kronecker"]

_LOOK = 4  # power iterations by which factors are compared
_MOST = 200
_STILL = 1e-12  # relative change of s1^2 at which the iteration ends


@dataclass(frozen=True)
class Kronecker:
    """w1 [m1, n1] and w2 [m2, n2], ||D||^2 and ||D - w1 x w2||^2."""

    w1: Tensor
    w2: Tensor
    energy: float
    residual: float

    @property
    def kept(self) -> float:
        """The share of the energy ||D||^2 that the product has."""
        return 1 - self.residual / self.energy if self.energy else 1.0


def factors_of(rows: int, columns: int) -> list[int]:
    """The sizes f for which w1 may be [f, f]: common divisors above one, of which the larger sides stay with w2."""
    common = gcd(rows, columns)
    return [f for f in range(2, common + 1) if common % f == 0 and f <= isqrt(min(rows, columns))]


def nearest_kronecker(matrix: Tensor, *, factor: int | None = None, kernel: int = 1) -> Kronecker:
    """The Kronecker product nearest to a matrix [m, n] in the Frobenius norm.

    `factor` f makes w1 [f, f] (or as much of f as divides a side: the largest divisor up to it). Without one that f, or
    the division of both sides near their square roots by which LyCORIS and PEFT train, is taken for which the energy
    left over, times the numbers to store, is least: an exact product wins over all.
    The columns of a convolution are `kernel` numbers for each input; these stay together in w2.
    Raises UsageError for a factor below one.
    """
    energy = frobenius_squared(matrix)
    if factor is not None and factor < 1:
        raise UsageError("usage.factor", f"--factor {factor}: it is from 1 on", fix="--factor 8")
    if factor is not None:
        sides = [(_divisor(matrix.shape[0], factor), _divisor(matrix.shape[1] // kernel, factor))]
    else:
        inner = matrix.shape[1] // kernel
        even = (_divisor(matrix.shape[0], isqrt(matrix.shape[0])), _divisor(inner, isqrt(inner)))
        sides = list(dict.fromkeys([even, *((f, f) for f in factors_of(matrix.shape[0], inner))]))
    m1, n1 = sides[0] if len(sides) == 1 else min(sides, key=lambda side: _cost(matrix, side, energy))
    u, v, square = _leading(_rearranged(matrix, m1, n1), _MOST)
    root = square**0.25
    w1, w2 = u.reshape(m1, n1).mul_(root), v.reshape(matrix.shape[0] // m1, matrix.shape[1] // n1).mul_(root)
    return Kronecker(w1, w2, energy, _residual(matrix, w1, w2))


def _divisor(side: int, most: int) -> int:
    return max(d for d in range(1, min(most, side) + 1) if side % d == 0)


def _cost(matrix: Tensor, side: tuple[int, int], energy: float) -> float:
    rows, columns = matrix.shape
    stored = side[0] * side[1] + rows // side[0] * (columns // side[1])
    left = energy - _leading(_rearranged(matrix, *side), _LOOK)[2]
    return max(left, 1e-12 * energy) * stored


def _rearranged(matrix: Tensor, m1: int, n1: int) -> Tensor:
    rows, columns = matrix.shape
    blocks = matrix.reshape(m1, rows // m1, n1, columns // n1).transpose(1, 2)
    return blocks.reshape(m1 * n1, -1)


def _leading(blocks: Tensor, most: int) -> tuple[Tensor, Tensor, float]:
    """u1, v1 and s1^2 by power iteration, begun with the block that has the most energy."""
    start = int(blocks.square().sum(dim=1).argmax())
    v = blocks[start] / blocks[start].norm().clamp_min(1e-30)
    u, before = blocks @ v, 0.0
    for _ in range(most):
        square = float(u.double().square().sum())
        if square - before <= _STILL * square:
            break
        before = square
        v = blocks.mT @ u
        v = v / v.norm().clamp_min(1e-30)
        u = blocks @ v
    size = u.norm()
    return u / size.clamp_min(1e-30), v, float(size.double().square())


def _residual(matrix: Tensor, w1: Tensor, w2: Tensor) -> float:
    """Summed over the rows of w1, so that the product is never whole."""
    import torch

    rows = len(w2)
    parts = (matrix[i * rows : (i + 1) * rows] - torch.kron(row[None], w2) for i, row in enumerate(w1))
    return sum(float(part.double().square().sum()) for part in parts)
