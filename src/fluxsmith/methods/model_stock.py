"""Model Stock: how far the average of fine-tunes should be pulled back to their base, from the angles between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fluxsmith.methods.base import Delta, EachShare, Measured, PerInput, Weight, merge_method
from fluxsmith.methods.geometric_median import elected_deltas
from fluxsmith.methods.span import Gram, unit_gram
from fluxsmith.methods.statistics import gram, when
from fluxsmith.methods.trimming import Undecided, deltas, magnitude_thresholds

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["model_stock", "ties_stock"]

_PAPER = "Jang et al. 2024, Model Stock (arXiv 2403.19522)"
Over = Literal["tensor", "rows"]
Pairs = Literal["all", "consecutive"]


def _pairs(count: int, which: str) -> list[tuple[int, int]]:
    if which == "consecutive":
        return [(i, i + 1) for i in range(count - 1)]
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _ratio(cosine: Any, count: int) -> Any:
    """t = N cos / (1 + (N-1) cos), 0 where that has no value; for a number or a tensor."""
    divisor = 1 + (count - 1) * cosine
    if isinstance(cosine, float):
        return count * cosine / divisor if abs(divisor) >= 1e-6 else 0.0
    singular = divisor.abs() < 1e-6
    return (count * cosine / divisor.masked_fill(singular, 1.0)).masked_fill(singular, 0.0)


def _row_ratio(found: Sequence[Delta], pairs: str) -> "Tensor":
    """t of every row, [rows, 1]."""
    norms = [delta.double().square().sum(1, keepdim=True) for delta in found]
    chosen = _pairs(len(found), pairs)
    total: Any = 0.0
    for i, j in chosen:
        length = (norms[i] * norms[j]).sqrt()
        cosine = (found[i].double() * found[j]).sum(1, keepdim=True) / length.masked_fill(length == 0, 1.0)
        total = total + cosine.clamp(-1, 1)
    return _ratio(total / len(chosen), len(found)).to(found[0].dtype)


def _tensor_ratio(products: Gram, pairs: str) -> float:
    """t of the whole tensor."""
    _, cosines = unit_gram(products)
    chosen = _pairs(len(cosines), pairs)
    return _ratio(sum(min(max(cosines[i][j], -1.0), 1.0) for i, j in chosen) / len(chosen), len(cosines))


def _pulled(base: Weight, found: Sequence[Delta], total: Delta, products: Gram | None, pairs: str) -> Weight:
    """base + t * total, where `total` is an average of the deltas."""
    if products is None:
        return base.addcmul(total, _row_ratio(found, pairs))
    return base.add(total, alpha=_tensor_ratio(products, pairs))


@merge_method(rows=True, statistics={"products": when("over", "tensor", gram(deltas))}, paper=_PAPER)
def model_stock(base: Weight, first: Weight, *models: Weight, products: Measured, over: Over = "tensor", pairs: Pairs = "all") -> Weight:
    """base + t * (average of the models - base), t = N cos / (1 + (N-1) cos), cos the mean cosine between deltas.

    Angles are those of whole tensors (the paper's layers, mergekit) or of rows; `pairs: consecutive` takes only the
    angles of each model with the next, as sd-mecha does. Where t has no value (models that pull in opposite directions)
    the base stays.
    """
    found = deltas(base, first, *models)
    average = found[0].clone()
    for delta in found[1:]:
        average.add_(delta)
    return _pulled(base, found, average.div_(len(found)), products, pairs)


@merge_method(
    rows=True,
    statistics={"thresholds": magnitude_thresholds(), "products": when("over", "tensor", gram(elected_deltas))},
    paper=f"{_PAPER}; Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)",
)
def ties_stock(
    base: Weight,
    *models: Weight,
    thresholds: Measured,
    products: Measured,
    weights: PerInput = (),
    density: EachShare = 0.5,
    sign: Literal["magnitude", "count"] = "magnitude",
    undecided: Undecided = "plus",
    over: Over = "rows",
    pairs: Pairs = "all",
) -> Weight:
    """base + t * the mean, per element, of the deltas that TIES kept there; t is Model Stock's, of those deltas.

    The weights are those of the election. One model alone is trimmed and kept (t = 1).
    """
    found = elected_deltas(base, *models, thresholds=thresholds, weights=weights, sign=sign, undecided=undecided)
    total, voters = found[0].clone(), found[0].sign().abs_()
    for delta in found[1:]:
        total.add_(delta)
        voters.add_(delta.sign().abs_())
    average = total.div_(voters.clamp_(min=1.0))
    return base + average if len(found) == 1 else _pulled(base, found, average, products, pairs)
