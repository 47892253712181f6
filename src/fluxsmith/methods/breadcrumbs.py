"""Model breadcrumbs: leave out the largest and the smallest elements of every delta, then add or elect signs."""

from collections.abc import Sequence
from typing import Literal

from fluxsmith.methods.base import Delta, EachShare, Measured, PerInput, Share, Weight, merge_method
from fluxsmith.methods.linear import shares
from fluxsmith.methods.statistics import kth_magnitude
from fluxsmith.methods.ties import disjoint_average
from fluxsmith.methods.trimming import deltas, trim

__all__ = ["breadcrumbs", "breadcrumbs_ties"]

_PAPER = "Davari and Belilovsky 2023, Model breadcrumbs (arXiv 2312.06795)"


def _twice(base: Weight, *models: Weight) -> list[Delta]:
    found = deltas(base, *models)
    return [*found, *found]


def _shares(density: Sequence[float], gamma: float) -> list[tuple[float, ...]]:
    """Of every delta what lies above the lower end of its band, then what lies above the upper, as shares to be added."""
    return [*((gamma, one) for one in density), *([(gamma,)] * len(density))]


def _counted(count: int, parts: Sequence[float]) -> int:
    return min(sum(int(part * count) for part in parts), count)


# The magnitudes where the band of every delta begins, then those where it ends, in one pass.
_BANDS = kth_magnitude(_twice, _shares, _counted)


def _trimmed(base: Weight, *models: Weight, bands: Sequence[float]) -> list[Delta]:
    """Every delta where its magnitude is at least the lower end of its band and less than the upper."""
    found = deltas(base, *models)
    kept: list[Delta] = []
    for delta, low, high in zip(found, bands[: len(found)], bands[len(found) :], strict=True):
        inside = trim(delta, low) if low < float("inf") else delta * 0.0
        kept.append(inside if high == float("inf") else inside - trim(delta, high))
    return kept


@merge_method(statistics={"bands": _BANDS}, paper=_PAPER)
def breadcrumbs(
    base: Weight,
    *models: Weight,
    bands: Measured,
    weights: PerInput = (),
    density: EachShare = 0.9,
    gamma: Share = 0.01,
    normalize: bool = False,
    scale: float = 1.0,
) -> Weight:
    """base + scale * sum_i w_i band(m_i - base).

    Of every delta the `gamma` largest elements are left out as outliers, the next `density` are kept, the rest is left
    out: shares of the tensor's elements, by exact thresholds. Elements that tie with the smallest outlier are outliers,
    those that tie with the smallest kept are kept.
    """
    kept = _trimmed(base, *models, bands=bands)
    factors = shares(weights, normalize)
    total = kept[0] * factors[0]
    for delta, factor in zip(kept[1:], factors[1:], strict=True):
        total.add_(delta, alpha=factor)
    return base.add(total, alpha=scale)


@merge_method(statistics={"bands": _BANDS}, paper=f"{_PAPER}; Yadav et al. 2023 (arXiv 2306.01708)")
def breadcrumbs_ties(
    base: Weight,
    *models: Weight,
    bands: Measured,
    weights: PerInput = (),
    density: EachShare = 0.9,
    gamma: Share = 0.01,
    scale: float = 1.0,
    sign: Literal["magnitude", "count"] = "magnitude",
    normalize: bool = True,
) -> Weight:
    """base + scale * disjoint average of the bands of every delta (see breadcrumbs)."""
    return base.add(disjoint_average(_trimmed(base, *models, bands=bands), weights, sign == "count", normalize), alpha=scale)
