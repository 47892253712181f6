"""Isotropic merging: all singular values of the merged delta become equal, so that no direction drowns the others."""

from collections.abc import Iterable

from fluxsmith.methods.base import Delta, PerInput, Share, Weight, merge_method
from fluxsmith.methods.decompositions import merge_matrices, orthogonal_factor, orthogonal_factor_elements, svd, svd_elements

__all__ = ["iso_c", "iso_cts"]

_PAPER = "Marczak et al. 2025, No Task Left Behind (arXiv 2502.04959)"


def _sum(deltas: Iterable[Delta]) -> Delta:
    total: Delta | None = None
    for delta in deltas:
        total = delta if total is None else total.add_(delta)
    assert total is not None
    return total


def _common(deltas: Iterable[Delta]) -> Delta:
    u, s, vh = svd(_sum(deltas))
    return u.mul(s.mean()) @ vh


@merge_method(whole=True, workspace=lambda rows, columns, inputs: rows * columns + svd_elements(rows, columns), paper=f"{_PAPER}, Iso-C")
def iso_c(base: Weight, *models: Weight, weights: PerInput = (), scale: float = 1.0) -> Weight:
    """base + scale * mean(s) U V^T, with U diag(s) V^T the sum of the deltas w_i (m_i - base).

    Vectors: base + scale * the mean of the deltas.
    """
    return merge_matrices(base, models, weights, scale, _common)


def _common_and_specific(deltas: list[Delta], share: float) -> Delta:
    import torch

    size, count = min(deltas[0].shape), len(deltas)
    # Every model gets equally many directions; what is left by rounding goes to the common ones.
    own = min(round((size - int(size * share)) / count), size // count)
    u, s, vh = svd(_sum([deltas[0].clone(), *deltas[1:]]))
    first = size - own * count
    common = u[:, :first].clone()
    # The directions that are not common, where all of them are known: smaller matrices, and no singular values of zero.
    others = u[:, first:].clone() if u.shape[0] == u.shape[1] else None
    left, strengths, right = [common], [s[:first]], [vh[:first].clone()]
    del u, vh
    while deltas and own:
        u, s, vh = _outside(common, others, deltas.pop(0))
        left.append(u[:, :own].clone())
        strengths.append(s[:own])
        right.append(vh[:own].clone())
        del u, vh
    u, vh = torch.cat(left, dim=1), torch.cat(right)
    del left, right, common, others
    u = orthogonal_factor(u).mul_(torch.cat(strengths).mean())
    return u @ orthogonal_factor(vh)


def _outside(common: Delta, others: Delta | None, delta: Delta) -> tuple[Delta, Delta, Delta]:
    """Singular values and vectors of a delta without its part in the common directions."""
    if others is None:
        return svd(delta.sub_(common @ (common.mT @ delta)))
    u, s, vh = svd(others.mT @ delta)
    return others @ u, s, vh


def _memory(rows: int, columns: int, inputs: int) -> float:
    apart = (inputs + 2) * rows * columns + svd_elements(rows, columns)
    joined = 4.5 * rows * columns + orthogonal_factor_elements(rows, columns)
    return max(apart, joined)


@merge_method(
    whole=True,
    workspace=_memory,
    paper=f"{_PAPER}, Iso-CTS",
)
def iso_cts(base: Weight, *models: Weight, weights: PerInput = (), scale: float = 1.0, common: Share = 0.8) -> Weight:
    """Iso-C with room for each model: the weakest 1 - `common` of the shared directions give way to the models' own.

    With k = min(rows, columns), the first `common` k singular vectors of the summed deltas stay. Of every delta, its
    projection away from these gives its first (1 - `common`) k / T singular vectors. All are joined and made orthogonal
    as in TSV-Merge, and every singular value becomes their mean. `common` 1 is Iso-C. Vectors: the mean of the deltas.
    """
    return merge_matrices(base, models, weights, scale, lambda deltas: _common_and_specific(list(deltas), common))
