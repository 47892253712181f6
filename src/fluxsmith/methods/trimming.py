"""Parts that the sparse delta methods share: deltas, trimming, sign election, disjoint combination.

Notation of TIES (Yadav et al. 2023): d_i = m_i - base; a trimmed delta is zero outside of what was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fluxsmith.methods.base import Delta, Masks, Weight
from fluxsmith.methods.statistics import kth_magnitude

__all__ = [
    "Rescale", "Undecided", "agreeing", "deltas", "disjoint_sum", "drop_random", "elected_sign", "l1_factors", "magnitude_thresholds",
    "masses", "trim",
]  # fmt: skip

#: What is done for the elements that were dropped: those kept are divided by their probability, or scaled so that the
#: delta has the sum of magnitudes that it had, or nothing.
Rescale = Literal["density", "l1", "none"]
#: Where votes cancel: the sign is plus, or no model is taken.
Undecided = Literal["plus", "none"]


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
    import torch

    if threshold <= 0:
        return delta
    if delta.dtype != torch.float32:
        return delta * (delta.abs() >= threshold)
    # In float32 hardshrink takes one pass; it keeps what is strictly larger, so it is given the number just below.
    below = torch.nextafter(torch.tensor(threshold, dtype=torch.float32), torch.tensor(0.0))
    return torch.nn.functional.hardshrink(delta, float(below))


def drop_random(delta: Delta, masks: Masks, index: int, density: float, rescale: bool = True) -> Delta:
    """Keep each element with probability `density`; what is kept is divided by it unless `rescale` is off.

    DARE (Yu et al. 2023): the expectation of the delta stays what it was.
    """
    if density <= 0:
        return delta * 0.0
    kept = delta * masks.keep(index, density, delta)
    return kept.div_(density) if rescale and density < 1 else kept


def masses(before: Sequence[Delta], after: Sequence[Delta]) -> list[Any]:
    """Sums of magnitudes of a tile's deltas, before and after elements were dropped, for the statistic of `l1_factors`."""
    import torch

    return [delta.abs().sum(dtype=torch.float64) for delta in (*before, *after)]


def l1_factors(masses: Sequence[float]) -> list[float]:
    """By how much every delta is to be scaled to have the sum of magnitudes that it had; 1 where nothing is left."""
    before, after = masses[: len(masses) // 2], masses[len(masses) // 2 :]
    return [one / other if other else 1.0 for one, other in zip(before, after, strict=True)]


def elected_sign(weighted: Sequence[Delta], by_count: bool, undecided: str = "plus") -> Delta:
    """+1 or -1 per element: the sign of the sum of deltas, or of the sum of their signs.

    A sum of 0 gives +1, or with `undecided="none"` 0, with which no delta agrees.
    """
    import torch

    total = weighted[0].sign() if by_count else weighted[0].clone()
    for delta in weighted[1:]:
        total.add_(delta.sign() if by_count else delta)
    if undecided == "none":
        return total.sign_()
    one = torch.ones((), dtype=total.dtype, device=total.device)
    return torch.copysign(one, total.add_(0.0))  # adding 0 makes -0 to +0


def agreeing(delta: Delta, sign: Delta) -> Delta:
    """The delta where it has the elected sign, zero elsewhere."""
    return (delta * sign).relu_().mul_(sign)


def disjoint_sum(weighted: Sequence[Delta], sign: Delta, shares: Sequence[float]) -> tuple[Delta, Delta]:
    """Per element: the sum of the deltas that have the elected sign, and the sum of the shares of their models.

    With s = +-1, relu(s d) is the magnitude of a delta that agrees and 0 for the others; multiplying by s is exact.
    """
    total, share = None, None
    for delta, weight in zip(weighted, shares, strict=True):
        agreeing = (delta * sign).relu_()
        voters = agreeing.sign().mul_(weight)
        total = agreeing if total is None else total.add_(agreeing)
        share = voters if share is None else share.add_(voters)
    assert total is not None and share is not None
    return total.mul_(sign), share
