"""A matrix with more input channels, which change nothing: what BFL's control adapters ask of a model before they fit."""

from fluxsmith.methods.base import Weight, merge_method

__all__ = ["pad_columns"]


@merge_method(whole=True, propagates=True)
def pad_columns(matrix: Weight, *, columns: int) -> Weight:
    """The matrix of shape (n, m) as (n, columns), columns of zeros added at the right."""
    import torch

    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1]))
