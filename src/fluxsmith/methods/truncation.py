"""The nearest matrix of low rank, and the nearest sum of Kronecker products: what a LoRA or a LoKr could hold of a delta."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from fluxsmith.methods.base import Delta, Masks, Share, merge_method
from fluxsmith.methods.decompositions import as_matrix, svd, svd_elements

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["kronecker_shapes", "truncate_kronecker", "truncate_rank"]

_MARGIN = 8  # directions that a sketch has beyond the rank (Halko et al., section 4.2)


def _sketched(matrix: Tensor, rank: int, passes: int, masks: Masks) -> Tensor:
    """The matrix in the span of a random sketch of its columns, at most `rank` of its directions kept."""
    import torch

    signs = matrix.new_empty(matrix.shape[1], min(rank + _MARGIN, *matrix.shape))
    signs = masks.keep(0, 0.5, signs).to(matrix.dtype).mul_(2).sub_(1)
    basis = torch.linalg.qr(matrix @ signs).Q
    for _ in range(passes):
        basis = torch.linalg.qr(matrix.mT @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    return basis @ _nearest(basis.mT @ matrix, rank)


def _nearest(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = svd(matrix)
    return u[:, :rank].mul(s[:rank]) @ vh[:rank]


@merge_method(
    whole=True,
    workspace=lambda rows, columns, inputs: svd_elements(rows, columns),
    paper="Eckart & Young 1936; Halko, Martinsson & Tropp 2011 (arXiv 0909.4061)",
)
def truncate_rank(delta: Delta, *, masks: Masks, rank: int = 8, algorithm: Literal["exact", "sketch"] = "exact", passes: int = 2) -> Delta:
    """The nearest delta of rank `rank` (Frobenius): its first singular values and vectors.

    `algorithm: sketch` looks for them in the span of `rank` + 8 random combinations of the columns, after `passes`
    further multiplications by the matrix and its transpose: much faster, and next to exact where singular values fall
    quickly. Vectors, and matrices of no higher rank, stay as they are; rank 0 gives zero.
    """
    if delta.dim() < 2 or rank >= min(delta.shape[0], delta[0].numel()):
        return delta
    if rank <= 0:
        return delta * 0.0
    matrix = as_matrix(delta)
    found = _nearest(matrix, rank) if algorithm == "exact" else _sketched(matrix, rank, passes, masks)
    return found.reshape(delta.shape)


def kronecker_shapes(rows: int, columns: int, ratio: float) -> tuple[int, int, int, int]:
    """(m1, m2, n1, n2) with rows = m1 m2, columns = n1 n2, such that factors [m1, n1] and [m2, n2] share the elements.

    `ratio` says how: 0 makes the first factor as small as it can be, 1 as large, 0.5 both equal. Of equally good
    shapes, the one whose factors are nearest to the matrix's own proportions is taken.
    """
    whole = math.log(rows * columns)
    choices = [(m, n) for m in _divisors(rows) for n in _divisors(columns)]

    def badness(choice: tuple[int, int]) -> tuple[float, float]:
        m, n = choice
        balance = abs(math.log(m * m / rows)) + abs(math.log(n * n / columns))
        return round(abs(math.log(m * n) - ratio * whole), 9), balance

    m, n = min(choices, key=badness)
    return m, rows // m, n, columns // n


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _kronecker_memory(rows: int, columns: int, inputs: int) -> float:
    side = math.isqrt(rows * columns)
    return rows * columns + svd_elements(side, side)


@merge_method(whole=True, workspace=_kronecker_memory, paper="Van Loan & Pitsianis 1993, Approximation with Kronecker products")
def truncate_kronecker(delta: Delta, *, ratio: Share = 0.5, terms: int = 1) -> Delta:
    """The nearest sum of `terms` Kronecker products A_i x B_i (Frobenius).

    The matrix is rearranged so that every block [m2, n2] becomes a row; a Kronecker product is then a matrix of rank
    one, and the first singular values and vectors give the answer. `ratio` shares the elements between the factors
    (see kronecker_shapes): at 0.5 both have about the square root of the matrix's. A convolution's kernel belongs to
    the second factor. Vectors stay as they are.
    """
    if delta.dim() < 2:
        return delta
    kernel = math.prod(delta.shape[2:])
    m1, m2, n1, n2 = kronecker_shapes(delta.shape[0], delta.shape[1], ratio)
    blocks = as_matrix(delta).reshape(m1, m2, n1, n2 * kernel).transpose(1, 2)
    found = _nearest(blocks.reshape(m1 * n1, m2 * n2 * kernel), terms)
    return found.reshape(m1, n1, m2, n2 * kernel).transpose(1, 2).reshape(delta.shape)
