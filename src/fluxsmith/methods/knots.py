"""KnOTS: the deltas of all models in one common basis, where TIES compares like with like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fluxsmith.methods.base import Delta, EachShare, PerInput, Weight, merge_method
from fluxsmith.methods.decompositions import merge_matrices, svd, svd_elements
from fluxsmith.methods.ties import disjoint_average
from fluxsmith.methods.trimming import trim

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["knots_ties"]


def _largest(part: Tensor, density: float) -> Tensor:
    """The part with its int(density * count) largest elements, at least one; the others are zero."""
    import numpy as np

    if density >= 1:
        return part
    magnitudes = part.abs().flatten().cpu().numpy()
    place = len(magnitudes) - max(int(density * len(magnitudes)), 1)
    magnitudes.partition(place)
    return trim(part, float(np.asarray(magnitudes)[place]))


def _merge(deltas: list[Delta], weights: Sequence[float], density: Sequence[float], by_count: bool) -> Delta:
    import torch

    columns, joined = deltas[0].shape[1], torch.cat(deltas, dim=1)
    deltas.clear()
    u, s, vh = svd(joined)
    # Directions without strength have arbitrary coordinates, which must not take part in the vote.
    known = int((s > s[0] * max(joined.shape) * torch.finfo(s.dtype).eps).sum())
    del joined
    parts = vh[:known].split(columns, dim=1)
    if not known:
        return u.new_zeros(len(u), columns)
    kept = [_largest(part, share) for part, share in zip(parts, density, strict=True)]
    return u[:, :known].mul(s[:known]) @ disjoint_average(kept, weights, by_count, normalize=True)


def _memory(rows: int, columns: int, inputs: int) -> float:
    joined = (inputs - 1) * columns
    voting = 3.5 * rows * joined + 6 * rows * columns + 2 * rows * min(rows, joined)
    return max(rows * joined + svd_elements(rows, joined), voting)


@merge_method(whole=True, workspace=_memory, paper="Stoica et al. 2024, Model merging with SVD to tie the KnOTS (arXiv 2410.19735)")
def knots_ties(
    base: Weight,
    *models: Weight,
    weights: PerInput = (),
    density: EachShare = 0.5,
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
) -> Weight:
    """base + scale * U S TIES(V_1, ..., V_T)^T, with U S [V_1, ..., V_T]^T the decomposition of all deltas side by side.

    The V_i are the coordinates of model i in one basis of outputs: each keeps the `density` of its largest elements,
    signs are elected and those that agree averaged, as in `ties`. Vectors: base + scale * the mean of the deltas,
    each times its weight.
    """
    own = weights if base.dim() < 2 else [1.0] * len(models)  # the weights of matrices belong to the vote
    return merge_matrices(base, models, own, scale, lambda deltas: _merge(list(deltas), weights, density, sign == "count"))
