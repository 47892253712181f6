"""DARE: drop most of every delta at random and rescale the rest, then add them (linear) or elect signs (ties)."""

from typing import Literal

from fluxsmith.methods.base import EachShare, Masks, PerInput, Weight, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.ties import disjoint_average
from fluxsmith.methods.trimming import deltas, drop_random

__all__ = ["dare_linear", "dare_ties"]

_PAPER = "Yu et al. 2023, Language models are super Mario (arXiv 2311.03099)"


@merge_method(paper=_PAPER)
def dare_linear(
    base: Weight,
    *models: Weight,
    masks: Masks,
    weights: PerInput = (),
    density: EachShare = 0.5,
    rescale: bool = True,
    normalize: bool = False,
    scale: float = 1.0,
) -> Weight:
    """base + scale * sum_i w_i drop(m_i - base), each element kept with probability `density` and divided by it."""
    factors = shares(weights, normalize)
    total = base * 0.0
    for i, (delta, factor) in enumerate(zip(deltas(base, *models), factors, strict=True)):
        total.add_(drop_random(delta, masks, i, density[i], rescale), alpha=factor)
    return base.add(total, alpha=scale)


@merge_method(paper=f"{_PAPER}; Yadav et al. 2023 (arXiv 2306.01708)")
def dare_ties(
    base: Weight,
    *models: Weight,
    masks: Masks,
    weights: PerInput = (),
    density: EachShare = 0.5,
    rescale: bool = True,
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
    normalize: bool = True,
) -> Weight:
    """base + scale * disjoint average of deltas whose elements were kept with probability `density`."""
    kept = [drop_random(delta, masks, i, density[i], rescale) for i, delta in enumerate(deltas(base, *models))]
    return base.add(disjoint_average(kept, weights, sign == "count", normalize), alpha=scale)
