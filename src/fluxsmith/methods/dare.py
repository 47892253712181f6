"""DARE: drop most of every delta at random and rescale the rest, then add them (linear) or elect signs (ties)."""

from collections.abc import Sequence
from typing import Any, Literal

from fluxsmith.methods.base import Delta, EachShare, Masks, Measured, PerInput, Weight, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.statistics import sums, when
from fluxsmith.methods.ties import disjoint_average
from fluxsmith.methods.trimming import Rescale, deltas, drop_random, l1_factors, masses

__all__ = ["dare_linear", "dare_ties"]

_PAPER = "Yu et al. 2023, Language models are super Mario (arXiv 2311.03099)"


def _masses(base: Weight, *models: Weight, masks: Masks, density: Sequence[float]) -> list[Any]:
    found = deltas(base, *models)
    return masses(found, [drop_random(delta, masks, i, density[i], rescale=False) for i, delta in enumerate(found)])


_STATISTICS = {"measured_masses": when("rescale", "l1", sums(_masses))}


def _kept(
    base: Weight, *models: Weight, masks: Masks, density: Sequence[float], rescale: str, measured_masses: Sequence[float] | None
) -> list[Delta]:
    kept = [drop_random(delta, masks, i, density[i], rescale == "density") for i, delta in enumerate(deltas(base, *models))]
    if measured_masses is None:
        return kept
    return [delta * factor for delta, factor in zip(kept, l1_factors(measured_masses), strict=True)]


@merge_method(statistics=_STATISTICS, paper=_PAPER)
def dare_linear(
    base: Weight,
    *models: Weight,
    masks: Masks,
    measured_masses: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    rescale: Rescale = "density",
    normalize: bool = False,
    scale: float = 1.0,
) -> Weight:
    """base + scale * sum_i w_i drop(m_i - base), each element kept with probability `density` and divided by it.

    `rescale: l1` scales what is kept of a delta to the sum of magnitudes that it had (mergekit), `none` leaves it.
    """
    factors = shares(weights, normalize)
    total = base * 0.0
    kept = _kept(base, *models, masks=masks, density=density, rescale=rescale, measured_masses=measured_masses)
    for delta, factor in zip(kept, factors, strict=True):
        total.add_(delta, alpha=factor)
    return base.add(total, alpha=scale)


@merge_method(statistics=_STATISTICS, paper=f"{_PAPER}; Yadav et al. 2023 (arXiv 2306.01708)")
def dare_ties(
    base: Weight,
    *models: Weight,
    masks: Masks,
    measured_masses: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    rescale: Rescale = "density",
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
    normalize: bool = True,
) -> Weight:
    """base + scale * disjoint average of deltas whose elements were kept with probability `density`."""
    kept = _kept(base, *models, masks=masks, density=density, rescale=rescale, measured_masses=measured_masses)
    return base.add(disjoint_average(kept, weights, sign == "count", normalize), alpha=scale)
