"""Add to one checkpoint what distinguishes two others."""

from fluxsmith.methods.base import Weight, merge_method

__all__ = ["add_difference"]


@merge_method(propagates=True, paper="Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089)")
def add_difference(a: Weight, b: Weight, c: Weight, *, alpha: float = 1.0) -> Weight:
    """a + alpha (b - c)."""
    return a.add(b - c, alpha=alpha)
