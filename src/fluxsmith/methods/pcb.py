"""PCB-Merging: weigh every element by how much it matters to its model and how well it agrees with the others."""

from collections.abc import Sequence

from fluxsmith.methods.base import Delta, Measured, Param, PerInput, Share, Weight, merge_method
from fluxsmith.methods.statistics import kth_magnitude
from fluxsmith.methods.trimming import deltas

__all__ = ["pcb"]

_OUTLIERS = 0.0001  # this share of the magnitudes of a delta is cut off at both ends


def _twice(base: Weight, *models: Weight) -> list[Delta]:
    found = deltas(base, *models)
    return [*found, *found]


def _end_places(weights: Sequence[float]) -> list[float]:
    """Where the magnitudes of every delta begin, then where they end, as places from below."""
    return [*([_OUTLIERS] * len(weights)), *([1 - _OUTLIERS] * len(weights))]


def _from_top(count: int, place: float) -> int:
    return count - (int(count * place - 1) if place > 0.5 else int(count * place)) if count > 1 else count


def _clipped(delta: Delta, low: float, high: float) -> Delta:
    """The delta with its magnitudes in [low, high]; zeros stay, and all does where nothing is known of its ends."""
    if high <= low:
        return delta
    return delta.sign().mul_(delta.abs().clamp_(low, high))


def _scores(base: Weight, *models: Weight, ends: Sequence[float]) -> list[Param]:
    """Per model: exp(N s^2) tanh(d_i sum_j d_j) with s the magnitude from 0 (smallest) to 1 (largest); 0 where negative."""
    found = deltas(base, *models)
    total = found[0].clone()
    for delta in found[1:]:
        total.add_(delta)
    scores: list[Param] = []
    for delta, low, high in zip(found, ends[: len(found)], ends[len(found) :], strict=True):
        size = delta.abs().clamp_(low, high).sub_(low).div_(high - low) if high > low else delta.sign().abs_()
        scores.append(size.square_().mul_(len(found)).exp_().mul_(delta.mul_(total).tanh_()).relu_())
    return scores


def _scores_twice(base: Weight, *models: Weight, ends: Sequence[float]) -> list[Param]:
    found = _scores(base, *models, ends=ends)
    return [*found, *found]


def _score_shares(density: float, weights: Sequence[float]) -> list[float]:
    """Of every score the threshold that `density` of it passes, then the largest."""
    return [*([density] * len(weights)), *([0.0] * len(weights))]


def _at_least_one(count: int, share: float) -> int:
    return max(count - int(count * (1 - share)), 1)


@merge_method(
    statistics={
        "ends": kth_magnitude(_twice, _end_places, _from_top),
        "limits": kth_magnitude(_scores_twice, _score_shares, _at_least_one),
    },
    paper="Du et al. 2024, Parameter competition balancing for model merging (arXiv 2410.02396)",
)
def pcb(
    base: Weight,
    *models: Weight,
    ends: Measured,
    limits: Measured,
    weights: PerInput = (),
    density: Share = 0.1,
    scale: float = 1.0,
) -> Weight:
    """base + scale * sum_i b_i d_i / sum_i b_i, b_i from 0 to 1 over the `density` largest scores of model i, else 0.

    The score of an element is exp(N s^2) tanh(d_i sum_j d_j): s is its magnitude between the smallest and the largest of
    the delta (0.01 % are cut off on both sides; below 10,000 elements it begins at zero), the product is positive where
    d_i goes the way of the sum. Scores are ranked in each tensor (the authors' code ranks those of the whole model), and
    negative ones never count. `weights` multiply b_i.
    """
    found = deltas(base, *models)
    count = len(found)
    total, divisor = base * 0.0, base * 0.0
    scores = _scores(base, *models, ends=ends)
    for i, (delta, score) in enumerate(zip(found, scores, strict=True)):
        low, high = limits[i], limits[count + i]
        balance = _balance(score, low, high).mul_(weights[i])
        divisor.add_(balance)
        total.add_(balance.mul_(_clipped(delta, ends[i], ends[count + i])))
    return base.add(total.div_(divisor.clamp_(min=1e-12)), alpha=scale)


def _balance(score: Param, low: float, high: float) -> Param:
    """0 up to the threshold, 1 at the largest; where these are equal (a scalar has 0), 1 for what reaches it."""
    if high > low:
        return score.sub_(low).relu_().div_(high - low)
    return score.ge_(max(low, 1e-30))
