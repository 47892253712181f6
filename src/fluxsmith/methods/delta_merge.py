"""MergeFlux's family of delta merges: {none, magnitude, random} pruning x {sum, mean, disjoint} combination.

One method per way of pruning, as only two of them need something from the engine. They differ from TIES and DARE in
details that users of MergeFlux rely on: deltas are pruned before they are weighted, `mean` divides by the number of
models, and `disjoint` by the number (not the weights) of the models that agree.

Rounding is that of torch.stack(...).sum(0) and .mean(0), which MergeFlux calls, so that the two agree to the last bit
with up to four models (with more, torch's own order of addition depends on the place of an element in its tensor):
sums of half types are taken in fp32 and rounded once, and begin at +0. A disjoint mean stays in fp32, as it is a
quotient by an fp32 count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fluxsmith.methods.base import Delta, EachShare, Masks, Measured, PerInput, Weight, merge_method
from fluxsmith.methods.trimming import deltas, disjoint_sum, drop_random, elected_sign, magnitude_thresholds, trim

if TYPE_CHECKING:
    from torch import dtype

__all__ = ["delta_merge", "magnitude_delta_merge", "random_delta_merge"]

Combine = Literal["sum", "mean", "disjoint"]
Sign = Literal["total", "frequency"]


def _combine(pruned: Sequence[Delta], weights: Sequence[float], combine: str, sign: str) -> Delta:
    compute = pruned[0].dtype
    # fp32 holds the products as they were rounded; for fp32 itself nothing is copied
    weighted = [(delta * weight).float() for delta, weight in zip(pruned, weights, strict=True)]
    if combine == "disjoint":
        return _disjoint_mean(weighted, sign == "frequency", compute)
    total = weighted[0].add_(0.0)  # -0 becomes +0
    for delta in weighted[1:]:
        total = total.add_(delta)
    return (total.div_(len(weighted)) if combine == "mean" else total).to(compute)


def _disjoint_mean(weighted: Sequence[Delta], by_count: bool, compute: dtype) -> Delta:
    """The sum of the deltas that agree with the elected sign, rounded to `compute`, over their number (at least 1)."""
    total, count = disjoint_sum(weighted, elected_sign(weighted, by_count), [1.0] * len(weighted))
    return total.to(compute).float().div_(count.clamp_(min=1.0))


@merge_method
def delta_merge(base: Weight, *models: Weight, weights: PerInput = (), combine: Combine = "sum", sign: Sign = "total") -> Weight:
    """base + the sum, mean or disjoint mean of w_i (m_i - base)."""
    return base + _combine(deltas(base, *models), weights, combine, sign)


@merge_method(statistics={"thresholds": magnitude_thresholds(at_least_one=False)})
def magnitude_delta_merge(
    base: Weight,
    *models: Weight,
    thresholds: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
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
    density: EachShare = 0.5,
    combine: Combine = "sum",
    sign: Sign = "total",
) -> Weight:
    """The same after keeping each element of every delta with probability `density`, divided by it."""
    pruned = [drop_random(delta, masks, i, density[i]) for i, delta in enumerate(deltas(base, *models))]
    return base + _combine(pruned, weights, combine, sign)
