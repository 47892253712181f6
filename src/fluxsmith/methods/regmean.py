"""RegMean: the linear layer whose outputs are nearest to those of every model's layer on that model's own inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxsmith.methods.base import PerInput, PerInputParam, Share, Weight, merge_method
from fluxsmith.methods.linear import shares

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["regmean"]

#: Added to the diagonal, as a part of the matrix's norm: what float32 rounds, so that directions which no sample had are
#: averaged and not decided by rounding. The next one is taken where a matrix is still not positive.
_RIDGES = (3e-7, 3e-5, 3e-3)


def _softened(gram: Tensor, alpha: float, weight: float) -> Tensor:
    """weight * (alpha G + (1 - alpha) diag(G))."""
    soft = gram * (alpha * weight)
    soft.diagonal().copy_(gram.diagonal() * weight)
    return soft


def _solved(total: Tensor, moved: Tensor) -> Tensor:
    """moved @ total^-1; `total` is changed."""
    import torch

    norm = float(torch.linalg.matrix_norm(total)) or 1.0
    first, *others = _RIDGES
    total.diagonal().add_(norm * first)
    factor, failed = torch.linalg.cholesky_ex(total)
    while failed and others:
        total.diagonal().add_(norm * others.pop(0))
        factor, failed = torch.linalg.cholesky_ex(total)
    return torch.cholesky_solve(moved.mT, factor).mT


def _memory(rows: int, columns: int, inputs: int) -> float:
    return 7 * columns * columns + 9 * rows * columns


@merge_method(whole=True, workspace=_memory, paper="Jin et al. 2022, Dataless Knowledge Fusion (arXiv 2212.09849)")
def regmean(*models: Weight, grams: PerInputParam = (), weights: PerInput = (), alpha: Share = 0.9) -> Weight:
    """W = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1, the minimum of sum_i w_i |X_i W^T - X_i W_i^T|^2 with G_i = X_i^T X_i.

    `grams` has one matrix [in, in] per model (`fluxsmith statistics MODEL --kind regmean` makes them), whose elements
    beside the diagonal are multiplied by `alpha` (1: the exact minimum on the samples; less where these are few). A
    tensor without grams, such as a bias, is averaged.

    Computed as M + (sum_i w_i (W_i - M) G_i) (sum_i w_i G_i)^-1 with M the average, in float64: what is rounded is then
    of the size of the differences.
    """
    import torch

    mean = models[0] * 0.0
    for model, factor in zip(models, shares(weights, normalize=True), strict=True):
        mean.add_(model, alpha=factor)
    if not grams:
        return mean
    total = torch.zeros(grams[0].shape, dtype=torch.float64, device=mean.device)
    moved = torch.zeros_like(mean, dtype=torch.float64)
    for model, gram, weight in zip(models, grams, weights, strict=True):
        soft = _softened(gram.float(), alpha, weight)
        total.add_(soft)
        moved.add_((model - mean).float() @ soft)
        del soft
    return mean.add_(_solved(total, moved))
