"""Products with tensors of numbers."""

from collections.abc import Sequence

from fluxsmith.methods.base import Delta, Param, Weight, merge_method

__all__ = ["multiply", "multiply_masks", "passthrough", "scale"]


def _product(first: Delta, masks: Sequence[Param]) -> Delta:
    product = first * masks[0]
    for mask in masks[1:]:
        product.mul_(mask)
    return product


@merge_method(propagates=True)
def multiply(delta: Delta, *masks: Param) -> Delta:
    """delta * mask * ..., element by element."""
    return _product(delta, masks)


@merge_method(propagates=True)
def multiply_masks(first: Param, *masks: Param) -> Param:
    """first * mask * ..., element by element."""
    return _product(first, masks)


@merge_method(propagates=True)
def scale(delta: Delta, *, alpha: float | Param = 1.0) -> Delta:
    """alpha * delta; alpha may be a tensor of numbers."""
    return delta * alpha


@merge_method(propagates=True, paper="mergekit, passthrough")
def passthrough(model: Weight, *, scale: float = 1.0) -> Weight:
    """scale * model: a checkpoint as it is, or with some of its tensors scaled."""
    return model * scale
