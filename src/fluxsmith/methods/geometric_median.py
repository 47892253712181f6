"""The geometric median: the point with the smallest sum of distances to all models; outliers hardly move it."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from fluxsmith.methods.base import Between, Delta, EachShare, Measured, NonNegative, PerInput, Same, Weight, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.span import Gram, combined, product, themselves
from fluxsmith.methods.statistics import gram
from fluxsmith.methods.trimming import Undecided, agreeing, deltas, elected_sign, magnitude_thresholds, trim

__all__ = ["elected_deltas", "geometric_median", "median_coefficients", "ties_median"]

_PAPER = "Pillutla et al. 2022, Robust aggregation for federated learning (arXiv 1912.13445)"
Iterations = Annotated[int, Between(0, 100000)]


def median_coefficients(products: Gram, weights: Sequence[float], iterations: int, tolerance: float) -> list[float]:
    """The coefficients of the tensors in their median (Weiszfeld's algorithm), which sum to one."""
    found = list(weights)
    before = math.inf
    scale = math.sqrt(max(row[i] for i, row in enumerate(products)))
    for _ in range(iterations):
        distances = [_distance(products, found, i) for i in range(len(found))]
        reached = sum(w * d for w, d in zip(weights, distances, strict=True))
        if before - reached <= tolerance * reached:
            break
        before = reached
        pulls = [w / max(d, 1e-12 * scale, 1e-300) for w, d in zip(weights, distances, strict=True)]
        found = [pull / sum(pulls) for pull in pulls]
    return found


def _distance(products: Gram, coefficients: Sequence[float], index: int) -> float:
    difference = [c - (j == index) for j, c in enumerate(coefficients)]
    return math.sqrt(max(product(products, difference, difference), 0.0))


@merge_method(statistics={"products": gram(themselves)}, propagates=True, paper=_PAPER)
def geometric_median(
    *models: Same, products: Measured, weights: PerInput = (), iterations: Iterations = 1000, tolerance: NonNegative = 1e-14
) -> Same:
    """argmin_x sum_i w_i |x - m_i|, of whole tensors, by Weiszfeld's algorithm.

    It ends after `iterations`, or where one lowers the sum by less than the share `tolerance` of it.
    """
    return combined(models, median_coefficients(products, shares(weights, normalize=True), iterations, tolerance))


def elected_deltas(
    base: Weight,
    *models: Weight,
    thresholds: Sequence[float],
    weights: Sequence[float] = (),
    sign: str = "magnitude",
    undecided: str = "plus",
) -> list[Delta]:
    """Every delta as TIES trims it, without the elements that do not have the elected sign."""
    trimmed = [trim(delta, t) for delta, t in zip(deltas(base, *models), thresholds, strict=True)]
    weighted = [delta * weight for delta, weight in zip(trimmed, weights, strict=True)]
    elected = elected_sign(weighted, sign == "count", undecided)
    return [agreeing(delta, elected) for delta in trimmed]


@merge_method(
    statistics={"thresholds": magnitude_thresholds(), "products": gram(elected_deltas)},
    paper=f"{_PAPER}; Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)",
)
def ties_median(
    base: Weight,
    *models: Weight,
    thresholds: Measured,
    products: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
    undecided: Undecided = "plus",
    iterations: Iterations = 1000,
    tolerance: NonNegative = 1e-14,
) -> Weight:
    """base + scale * geometric median of the deltas that TIES has trimmed and whose minority signs it has erased.

    The weights are those of the election; the median counts every delta as one.
    """
    found = elected_deltas(base, *models, thresholds=thresholds, weights=weights, sign=sign, undecided=undecided)
    equal = [1 / len(found)] * len(found)
    return base.add(combined(found, median_coefficients(products, equal, iterations, tolerance)), alpha=scale)
