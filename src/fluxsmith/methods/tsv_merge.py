"""TSV-Merge: every model keeps its strongest singular vectors, and those of all models are made orthogonal to each other."""

from collections.abc import Iterable

from fluxsmith.methods.base import Delta, PerInput, Weight, merge_method
from fluxsmith.methods.decompositions import merge_matrices, orthogonal_factor, orthogonal_factor_elements, svd

__all__ = ["tsv_merge"]


def _merge(deltas: Iterable[Delta], count: int) -> Delta:
    import torch

    left: list[Delta] = []
    strengths: list[Delta] = []
    right: list[Delta] = []
    for delta in deltas:
        u, s, vh = svd(delta)
        kept = max(len(s) // count, 1)
        left.append(u[:, :kept].clone())
        strengths.append(s[:kept].clone())
        right.append(vh[:kept].clone())
        del u, s, vh, delta
    u, vh = torch.cat(left, dim=1), torch.cat(right)
    del left, right
    u = orthogonal_factor(u).mul_(torch.cat(strengths))
    return u @ orthogonal_factor(vh)


@merge_method(
    whole=True,
    workspace=lambda rows, columns, inputs: 3 * rows * columns + orthogonal_factor_elements(rows, columns),
    paper="Gargiulo et al. 2024, Task Singular Vectors (arXiv 2412.00081)",
)
def tsv_merge(base: Weight, *models: Weight, weights: PerInput = (), scale: float = 1.0) -> Weight:
    """base + scale * U' S V'^T, where U and V hold the first 1/T of the singular vectors of each of T deltas.

    With d_i = w_i (m_i - base) = U_i S_i V_i^T and k = min(rows, columns), the first floor(k / T) singular vectors and
    values of every d_i are put side by side; U' and V' are the nearest orthogonal matrices to the joined U and V, so
    that no model writes where another does. Vectors: base + scale * mean(d_i).
    """
    return merge_matrices(base, models, weights, scale, lambda deltas: _merge(deltas, len(models)))
