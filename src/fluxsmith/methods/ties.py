"""TIES: trim small changes, elect a sign per element, average the models that agree with it."""

from collections.abc import Sequence
from typing import Literal

from fluxsmith.methods.base import Delta, EachShare, Measured, PerInput, Weight, merge_method
from fluxsmith.methods.trimming import Undecided, deltas, disjoint_sum, elected_sign, magnitude_thresholds, trim

__all__ = ["disjoint_average", "ties"]


def disjoint_average(trimmed: Sequence[Delta], weights: Sequence[float], by_count: bool, normalize: bool, undecided: str = "plus") -> Delta:
    """sum(w_i d_i) over the models that agree with the elected sign, divided by the sum of their w_i.

    Without `normalize` the sum is not divided. Where no model agrees the result is zero.
    """
    weighted = [delta * weight for delta, weight in zip(trimmed, weights, strict=True)]
    total, divisor = disjoint_sum(weighted, elected_sign(weighted, by_count, undecided), weights)
    if not normalize:
        return total
    if min(weights) > 0:
        return total.div_(divisor.clamp_(min=min(weights)))  # where no model agrees 0 is divided, by anything
    return total.div_(divisor.masked_fill_(divisor == 0, 1.0))


@merge_method(
    statistics={"thresholds": magnitude_thresholds()},
    paper="Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)",
)
def ties(
    base: Weight,
    *models: Weight,
    thresholds: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
    normalize: bool = True,
    undecided: Undecided = "plus",
) -> Weight:
    """base + scale * disjoint average of the largest `density` of every delta.

    The elected sign is that of the sum of the weighted deltas (`sign: magnitude`, the paper) or of the sum of their
    signs (`count`); where that is zero it is plus (the paper's code), or no model is taken (`undecided: none`, sd-mecha).
    Thresholds are exact and taken over whole canonical tensors; elements that tie with the k-th
    largest magnitude are all kept.
    """
    trimmed = [trim(delta, t) for delta, t in zip(deltas(base, *models), thresholds, strict=True)]
    return base.add(disjoint_average(trimmed, weights, sign == "count", normalize, undecided), alpha=scale)
