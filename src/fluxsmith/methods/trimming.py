"""Parts that the sparse delta methods share: deltas, trimming, sign election, disjoint combination.

Notation of TIES (Yadav et al. 2023): d_i = m_i - base; a trimmed delta is zero outside of what was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxsmith.methods.base import Delta, Masks, Weight
from fluxsmith.methods.statistics import kth_magnitude

__all__ = ["agreement", "deltas", "drop_random", "elected_sign", "magnitude_thresholds", "trim"]


def deltas(base: Weight, *models: Weight) -> list[Delta]:
    """What every model learned: m_i - base."""
    return [model - base for model in models]


def _kept(count: int, density: float) -> int:
    return count if density >= 1 else int(density * count)


def magnitude_thresholds(share: str = "density", at_least_one: bool = True) -> kth_magnitude:
    """The statistic "magnitude of the k-th largest element of every delta", k = int(density * count).

    Where k would be 0, `at_least_one` keeps one element (TIES in mergekit); else nothing is kept (MergeFlux).
    """

    def kept(count: int, density: float) -> int:
        k = _kept(count, density)
        return max(k, 1) if at_least_one and count else k

    return kth_magnitude(deltas, share, kept)


def trim(delta: Delta, threshold: float) -> Delta:
    """The delta where its magnitude reaches the threshold, zero elsewhere; ties are kept."""
    return delta * (delta.abs() >= threshold)


def drop_random(delta: Delta, masks: Masks, index: int, density: float, rescale: bool = True) -> Delta:
    """Keep each element with probability `density`; what is kept is divided by it unless `rescale` is off.

    DARE (Yu et al. 2023): the expectation of the delta stays what it was.
    """
    if density <= 0:
        return delta * 0.0
    kept = delta * masks.keep(index, density, delta)
    return kept.div_(density) if rescale and density < 1 else kept


def elected_sign(weighted: Sequence[Delta], by_count: bool) -> Any:
    """True where the elected sign is plus: the sign of the sum of deltas, or of the sum of their signs; 0 gives plus."""
    if by_count:
        total = weighted[0].sign()
        for delta in weighted[1:]:
            total = total.add_(delta.sign())
    else:
        total = weighted[0].clone()
        for delta in weighted[1:]:
            total = total.add_(delta)
    return total >= 0


def agreement(delta: Delta, plus: Any) -> Any:
    """True where a delta is not zero and has the elected sign."""
    return ((delta > 0) & plus) | ((delta < 0) & ~plus)
