"""A matrix with its dims exchanged: for the one tensor of SDXL that its two layouts store the other way round."""

from fluxsmith.methods.base import Weight, merge_method

__all__ = ["transpose"]


@merge_method(whole=True, propagates=True)
def transpose(matrix: Weight) -> Weight:
    """The matrix of shape (n, m) as (m, n), exactly."""
    return matrix.transpose(0, 1).contiguous()
