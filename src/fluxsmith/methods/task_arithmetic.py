"""Sum of what fine-tunes learned, on top of their base."""

from fluxsmith.methods.base import PerInput, Weight, merge_method
from fluxsmith.methods.linear import shares

__all__ = ["task_arithmetic"]


@merge_method(propagates=True, paper="Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089)")
def task_arithmetic(base: Weight, *models: Weight, weights: PerInput = (), normalize: bool = False, scale: float = 1.0) -> Weight:
    """base + scale * sum_i w_i (m_i - base); with `normalize`, w is divided by sum(w)."""
    factors = shares(weights, normalize)
    total = (models[0] - base).mul_(factors[0])
    for model, factor in zip(models[1:], factors[1:], strict=True):
        total.add_(model - base, alpha=factor)
    return base.add(total, alpha=scale)
