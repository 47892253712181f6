"""Parts that the methods on whole matrices share: tensors as matrices, singular vectors, orthogonal factors, their memory.

A tensor [out, ...] is the matrix [out, the rest]: a linear layer as it is, a convolution with its kernels as rows.
Fused tensors (qkv, linear1) are one matrix. Vectors (biases, norms) have no singular values; the papers average them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fluxsmith.methods.base import Delta, Weight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_matrix", "merge_matrices", "orthogonal_factor", "orthogonal_factor_elements", "svd", "svd_elements"]


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor of two or more dims as [rows, columns] in float32: LAPACK knows no half types."""
    return tensor.reshape(tensor.shape[0], -1).float()


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [rows, k], S [k] descending and V^T [k, columns] with k = min(rows, columns).

    A tall matrix is transposed first, as LAPACK takes less memory for a wide one. Where float32 does not converge (it
    happens with many equal singular values, as low-rank deltas have) float64 is used.
    """
    if matrix.shape[0] > matrix.shape[1]:
        u, s, vh = svd(matrix.mT)
        return vh.mT, s, u.mT
    import torch

    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportAttributeAccessIssue]
        u, s, vh = (factor.to(matrix.dtype) for factor in torch.linalg.svd(matrix.double(), full_matrices=False))
    return u, s, vh


def svd_elements(rows: int, columns: int) -> float:
    """Elements that `svd` holds at its peak beside its input: a copy, both factors, LAPACK's own (measured)."""
    short, long = sorted((rows, columns))
    return 2 * short * long + 4 * short * short


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns (Procrustes), U V^T of the singular value decomposition.

    Taken as (M M^T)^(-1/2) M in float64, which does not mind equal singular values, as joined bases have. Directions in
    which M is zero stay zero, where a decomposition would fill in any.
    """
    import torch

    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal_factor(matrix.mT).mT
    wide = matrix.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.mT)
    del wide
    there = squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    scale = torch.where(there, squares, 1.0).rsqrt() * there
    return ((vectors * scale) @ vectors.mT).to(matrix.dtype) @ matrix


def orthogonal_factor_elements(rows: int, columns: int) -> float:
    """Elements that `orthogonal_factor` holds at its peak beside its input (measured)."""
    short, long = sorted((rows, columns))
    return 9 * short * short + 2 * short * long


def merge_matrices(
    base: Weight, models: Sequence[Weight], weights: Sequence[float], scale: float, merge: Callable[[Iterable[Delta]], Delta]
) -> Weight:
    """base + scale * merge(w_i (m_i - base)), the differences made one by one as matrices; vectors are averaged."""
    if base.dim() < 2:
        mean = sum((model - base) * (weight / len(models)) for model, weight in zip(models, weights, strict=True))
        return base + mean * scale
    merged = merge(_task_matrices(base, models, weights))
    return merged.mul_(scale).reshape(base.shape).add_(base)


def _task_matrices(base: Weight, models: Sequence[Weight], weights: Sequence[float]) -> Iterator[Delta]:
    for model, weight in zip(models, weights, strict=True):
        yield as_matrix(model).sub(as_matrix(base)).mul_(weight)
