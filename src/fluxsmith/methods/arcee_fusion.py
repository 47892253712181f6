"""Arcee Fusion: take over only the elements of a fine-tune whose change is an outlier of importance."""

from fluxsmith.methods.base import Measured, Weight, merge_method
from fluxsmith.methods.statistics import kth_magnitude

__all__ = ["arcee_fusion"]

_EPSILON = 1e-8


def _importance(base: Weight, model: Weight) -> Weight:
    """|model - base| times KL(softmax(model row) || softmax(base row)), in float32.

    The divergence of rows that are nearly equal is far below float32's rounding of its terms, hence float64.
    """
    p = model.double().softmax(1).add_(_EPSILON)
    q = base.double().softmax(1).add_(_EPSILON)
    divergence = (p / q).log_().mul_(p).sum(1, keepdim=True).clamp_(min=0)
    return (model.double() - base).abs_().mul_(divergence).float()


def _three(base: Weight, model: Weight) -> list[Weight]:
    return [_importance(base, model)] * 3


def _quartiles() -> list[float]:
    return [0.25, 0.5, 0.75]


def _from_top(count: int, share: float) -> int:
    """The rank from the top of element int(share * (count - 1)) of the sorted values."""
    return count - int(share * (count - 1))


@merge_method(
    rows=True,
    statistics={"quartiles": kth_magnitude(_three, _quartiles, _from_top)},
    paper="Arcee 2024, Arcee Fusion (arcee.ai)",
)
def arcee_fusion(base: Weight, model: Weight, *, quartiles: Measured) -> Weight:
    """base + (model - base) where the importance reaches the median + 1.5 (third quartile - first).

    The importance of an element is its change times the Kullback-Leibler divergence of its row, of softmax(model) from
    softmax(base). Quartiles are exact and of whole tensors; a vector is one row.
    """
    first, median, third = quartiles
    mask = _importance(base, model) >= median + 1.5 * (third - first)
    return base.addcmul(model - base, mask.to(base.dtype))
