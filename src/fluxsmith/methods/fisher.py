"""Fisher-weighted averaging: where a model's loss is sensitive to a weight, that model decides it."""

from fluxsmith.methods.base import PerInput, PerInputParam, Weight, merge_method
from fluxsmith.methods.linear import shares

__all__ = ["fisher"]


@merge_method(paper="Matena & Raffel 2021, Merging Models with Fisher-Weighted Averaging (arXiv 2111.09832)")
def fisher(*models: Weight, importance: PerInputParam = (), weights: PerInput = (), floor: float = 1e-12) -> Weight:
    """sum_i w_i F_i m_i / sum_i w_i F_i per element, F_i >= 0 the diagonal of model i's Fisher information.

    `importance` has one tensor per model (`fluxsmith statistics MODEL --kind fisher` makes them); `floor` is added to
    every F_i, so that weights which no model needs are averaged. A tensor without importances is averaged.
    """
    if not importance:
        factors = shares(weights, normalize=True)
        total = models[0] * factors[0]
        for model, factor in zip(models[1:], factors[1:], strict=True):
            total.add_(model, alpha=factor)
        return total
    total, divisor = models[0] * 0.0, models[0] * 0.0
    for model, given, weight in zip(models, importance, weights, strict=True):
        own = given.add(floor).mul_(weight)
        divisor.add_(own)
        total.addcmul_(own, model)
    return total.div_(divisor)
