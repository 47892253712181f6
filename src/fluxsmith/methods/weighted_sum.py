"""Linear interpolation of two checkpoints."""

from fluxsmith.methods.base import Weight, merge_method

__all__ = ["weighted_sum"]


@merge_method(propagates=True, paper="Wortsman et al. 2022, Model soups (arXiv 2203.05482)")
def weighted_sum(a: Weight, b: Weight, *, alpha: float = 0.5) -> Weight:
    """(1 - alpha) a + alpha b."""
    return a.lerp(b, alpha)
