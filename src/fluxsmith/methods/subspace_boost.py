"""Subspace boosting: the weak singular values of a merged delta are lifted, against the collapse of its rank."""

from fluxsmith.methods.base import Delta, Share, merge_method
from fluxsmith.methods.decompositions import as_matrix, svd, svd_elements

__all__ = ["subspace_boost"]


@merge_method(
    whole=True,
    workspace=lambda rows, columns, inputs: svd_elements(rows, columns),
    paper="Skorobogat et al. 2025, Subspace-Boosted Model Merging (arXiv 2506.16506)",
)
def subspace_boost(delta: Delta, *, share: Share = 0.01) -> Delta:
    """U diag(max(s, s_j)) V^T, with s_j the first singular value at which `share` of the sum of all is reached.

    To be used on any merged delta: `base + subspace_boost(ties(base, a, b) - base)`. `share` 0 makes all singular
    values the largest one, `share` 1 changes nothing. Vectors stay as they are.
    """
    import torch

    if delta.dim() < 2:
        return delta
    u, s, vh = svd(as_matrix(delta))
    total = s.double().cumsum(0)
    reached = min(int(torch.searchsorted(total, share * total[-1])), len(s) - 1)
    return (u.mul(s.clamp(min=float(s[reached]))) @ vh).reshape(delta.shape)
