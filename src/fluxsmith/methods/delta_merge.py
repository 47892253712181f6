"""MergeFlux's family of delta merges: {none, magnitude, random} pruning x {sum, mean, disjoint} combination.

One method per way of pruning, as only two of them need something from the engine. They differ from TIES and DARE in
details that users of MergeFlux rely on: deltas are pruned before they are weighted, `mean` divides by the number of
models, and `disjoint` by the number (not the weights) of the models that agree.
"""

from collections.abc import Sequence
from typing import Literal

from fluxsmith.methods.base import Delta, Masks, Measured, PerInput, Weight, merge_method
from fluxsmith.methods.trimming import agreement, deltas, drop_random, elected_sign, magnitude_thresholds, trim

__all__ = ["delta_merge", "magnitude_delta_merge", "random_delta_merge"]

Combine = Literal["sum", "mean", "disjoint"]
Sign = Literal["total", "frequency"]


def _combine(pruned: Sequence[Delta], weights: Sequence[float], combine: str, sign: str) -> Delta:
    weighted = [delta * weight for delta, weight in zip(pruned, weights, strict=True)]
    if combine == "disjoint":
        plus = elected_sign(weighted, sign == "frequency")
        total, count = weighted[0] * 0.0, weighted[0] * 0.0
        for delta in weighted:
            agrees = agreement(delta, plus).to(delta.dtype)
            total.addcmul_(delta, agrees)
            count.add_(agrees)
        return total.div_(count.clamp_(min=1.0))
    total = weighted[0]
    for delta in weighted[1:]:
        total = total.add_(delta)
    return total.div_(len(weighted)) if combine == "mean" else total


@merge_method
def delta_merge(
    base: Weight, *models: Weight, weights: PerInput = (), combine: Combine = "sum", sign: Sign = "total"
) -> Weight:
    """base + the sum, mean or disjoint mean of w_i (m_i - base)."""
    return base + _combine(deltas(base, *models), weights, combine, sign)


@merge_method(statistics={"thresholds": magnitude_thresholds(at_least_one=False)})
def magnitude_delta_merge(
    base: Weight,
    *models: Weight,
    thresholds: Measured,
    weights: PerInput = (),
    density: float = 0.5,
    combine: Combine = "disjoint",
    sign: Sign = "total",
) -> Weight:
    """The same after keeping the int(density * count) largest elements of every delta, ties kept."""
    pruned = [trim(delta, t) for delta, t in zip(deltas(base, *models), thresholds, strict=True)]
    return base + _combine(pruned, weights, combine, sign)


@merge_method
def random_delta_merge(
    base: Weight,
    *models: Weight,
    masks: Masks,
    weights: PerInput = (),
    density: float = 0.5,
    combine: Combine = "sum",
    sign: Sign = "total",
) -> Weight:
    """The same after keeping each element of every delta with probability `density`, divided by it."""
    pruned = [drop_random(delta, masks, i, density) for i, delta in enumerate(deltas(base, *models))]
    return base + _combine(pruned, weights, combine, sign)
