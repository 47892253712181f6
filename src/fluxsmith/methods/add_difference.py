"""Add to one checkpoint what distinguishes two others."""

from fluxsmith.methods.base import Param, Weight, merge_method

__all__ = ["add_difference"]


@merge_method(propagates=True, paper="Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089)")
def add_difference(a: Weight, b: Weight, c: Weight, *, alpha: float | Param = 1.0) -> Weight:
    """a + alpha (b - c); alpha may be a tensor of numbers, such as one of the masks made for it."""
    if isinstance(alpha, (int, float)):
        return a.add(b - c, alpha=alpha)
    return a.addcmul(b - c, alpha)
