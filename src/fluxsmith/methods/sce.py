"""SCE: select where the models differ most, weigh by energy, erase the minority sign."""

from collections.abc import Sequence
from typing import Any

from fluxsmith.methods.base import Delta, Measured, Share, Weight, merge_method
from fluxsmith.methods.statistics import kth_magnitude, sums
from fluxsmith.methods.trimming import deltas, disjoint_sum, elected_sign

__all__ = ["sce"]


def _variance(base: Weight, *models: Weight) -> Delta:
    """The variance of the deltas, per element."""
    found = deltas(base, *models)
    mean = found[0].clone()
    for delta in found[1:]:
        mean.add_(delta)
    mean.div_(len(found))
    total = (found[0] - mean).square_()
    for delta in found[1:]:
        total.add_(delta.sub_(mean).square_())
    return total.div_(len(found))


def _varying(base: Weight, *models: Weight, select_topk: float) -> list[Any]:
    return [_variance(base, *models).count_nonzero() if select_topk < 1 else 0]


def _variances(base: Weight, *models: Weight) -> list[Delta]:
    return [_variance(base, *models)]


def _selected_share(varying: Sequence[float], select_topk: float) -> list[float]:
    """The number of elements to select; with all of them no threshold is needed."""
    return [float(int(varying[0] * select_topk)) if select_topk < 1 else float("inf")]


def _selected(base: Weight, *models: Weight, threshold: Sequence[float]) -> list[Delta]:
    found = deltas(base, *models)
    if threshold[0] <= 0:
        return found
    mask = (_variance(base, *models) >= threshold[0]).to(found[0].dtype)
    return [delta.mul_(mask) for delta in found]


def _energies(base: Weight, *models: Weight, threshold: Sequence[float]) -> list[Any]:
    return [delta.double().square().sum() for delta in _selected(base, *models, threshold=threshold)]


@merge_method(
    statistics={
        "varying": sums(_varying),
        "threshold": kth_magnitude(_variances, _selected_share, lambda count, chosen: int(min(chosen, count))),
        "energies": sums(_energies),
    },
    paper="Wan et al. 2024, FuseChat (arXiv 2408.07990)",
)
def sce(
    base: Weight, *models: Weight, varying: Measured, threshold: Measured, energies: Measured, select_topk: Share = 1.0, scale: float = 1.0
) -> Weight:
    """base + scale * sum_i w_i d_i / sum_i w_i over the deltas that have the sign of the sum of all.

    Only the `select_topk` share of the elements (of those where the models differ at all) with the largest variance
    between models is merged; w_i is the delta's share of the sum of squares of what was selected, one per tensor.
    """
    found = _selected(base, *models, threshold=threshold)
    total = sum(energies)
    factors = [energy / total if total else 1.0 / len(found) for energy in energies]
    sign = elected_sign(found, by_count=False)
    weighted = [delta.mul_(factor) for delta, factor in zip(found, factors, strict=True)]
    merged, share = disjoint_sum(weighted, sign, factors)
    return base.add(merged.div_(share.masked_fill_(share == 0, 1.0)), alpha=scale)
