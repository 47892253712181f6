"""DELLA: drop elements of every delta at random, the small ones more often, then add (linear) or elect signs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from fluxsmith.methods.base import Delta, EachShare, Masks, Measured, PerInput, Weight, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.ranks import row_ranks
from fluxsmith.methods.statistics import magnitude_ranks, sums, when
from fluxsmith.methods.ties import disjoint_average
from fluxsmith.methods.trimming import Rescale, deltas, l1_factors, masses

__all__ = ["della", "della_linear"]

_PAPER = "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617)"
Over = Literal["rows", "tensor"]
Ranks = Sequence[Callable[[Delta], Delta]] | None


def _drop(delta: Delta, masks: Masks, index: int, density: float, epsilon: float, ranks: Ranks, rescale: bool) -> Delta:
    """Keep each element with the probability that its rank gives it; with `rescale` divide what is kept by it."""
    if density <= 0:
        return delta * 0.0
    window = min(epsilon, 2 * density, 2 * (1 - density))
    if density >= 1:
        return delta
    rank = row_ranks(delta) if ranks is None else ranks[index](delta)
    probability = rank.mul_(window).add_(density - window / 2).to(delta.dtype)
    kept = delta * masks.keep(index, probability, delta)
    return kept.div_(probability) if rescale else kept


def _kept(
    base: Weight, *models: Weight, masks: Masks, density: Sequence[float], epsilon: Sequence[float], ranks: Ranks, rescale: str
) -> list[Delta]:
    found = deltas(base, *models)
    return [_drop(d, masks, i, density[i], epsilon[i], ranks, rescale == "density") for i, d in enumerate(found)]


def _masses(base: Weight, *models: Weight, **options: Any) -> list[Any]:
    return masses(deltas(base, *models), _kept(base, *models, **options))


def _measured_masses(
    base: Weight, *models: Weight, masks: Masks, density: Sequence[float], epsilon: Sequence[float], ranks: Ranks
) -> list[Any]:
    return _masses(base, *models, masks=masks, density=density, epsilon=epsilon, ranks=ranks, rescale="none")


_STATISTICS = {
    "ranks": when("over", "tensor", magnitude_ranks(deltas)),
    "measured_masses": when("rescale", "l1", sums(_measured_masses)),
}


def _scaled(kept: list[Delta], measured_masses: Sequence[float] | None) -> list[Delta]:
    if measured_masses is None:
        return kept
    return [delta * factor for delta, factor in zip(kept, l1_factors(measured_masses), strict=True)]


@merge_method(rows=True, statistics=_STATISTICS, paper=_PAPER)
def della_linear(
    base: Weight,
    *models: Weight,
    masks: Masks,
    ranks: Measured,
    measured_masses: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    epsilon: EachShare = 0.3,
    over: Over = "rows",
    rescale: Rescale = "density",
    normalize: bool = False,
    scale: float = 1.0,
) -> Weight:
    """base + scale * sum_i w_i drop(m_i - base), where larger elements are kept more often.

    Keep probabilities rise evenly with the rank of the magnitude, from density - epsilon/2 (smallest) to density +
    epsilon/2 (largest); the window is narrowed where it would leave [0, 1], so the mean is the density. Ranks are those
    in a row of the weight (the paper, mergekit), or in the whole tensor (sd-mecha; there they are counted in bins of
    1/128 of a magnitude). `rescale: density` divides what is kept by its own probability (the paper), `l1` restores
    each delta's sum of magnitudes (mergekit). mergekit's epsilon is half of this one.
    """
    kept = _scaled(_kept(base, *models, masks=masks, density=density, epsilon=epsilon, ranks=ranks, rescale=rescale), measured_masses)
    total = kept[0] * 0.0
    for delta, factor in zip(kept, shares(weights, normalize), strict=True):
        total.add_(delta, alpha=factor)
    return base.add(total, alpha=scale)


@merge_method(rows=True, statistics=_STATISTICS, paper=_PAPER)
def della(
    base: Weight,
    *models: Weight,
    masks: Masks,
    ranks: Measured,
    measured_masses: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    epsilon: EachShare = 0.3,
    over: Over = "rows",
    rescale: Rescale = "density",
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
    normalize: bool = True,
) -> Weight:
    """base + scale * disjoint average of deltas whose larger elements were kept more often (see della_linear)."""
    kept = _scaled(_kept(base, *models, masks=masks, density=density, epsilon=epsilon, ranks=ranks, rescale=rescale), measured_masses)
    return base.add(disjoint_average(kept, weights, sign == "count", normalize), alpha=scale)
