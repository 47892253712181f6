"""Interpolation that depends on how alike two checkpoints are, column by column (supermerger's cosineA and cosineB)."""

from typing import TYPE_CHECKING

from fluxsmith.methods.base import Measured, Weight, merge_method
from fluxsmith.methods.columns import column_products
from fluxsmith.methods.statistics import column_sums

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_cosine_a", "add_cosine_b"]

_PAPER = "hako-mikan, sd-webui-supermerger; sd-mecha"
_STATISTICS = {"products": column_sums(column_products)}


def _cosine(aa: "Tensor", bb: "Tensor", ab: "Tensor") -> "Tensor":
    length = (aa * bb).sqrt()
    return ab / length.masked_fill(length == 0, 1.0)


def _column_cosine(products: "list[Tensor]") -> "Tensor":
    """The cosine of every column; of the whole where the tensor is one vector."""
    rows, aa, bb, ab = products
    if float(rows[0]) == 1:
        return _cosine(aa.sum(), bb.sum(), ab.sum())
    return _cosine(aa, bb, ab)


def _interpolated(a: Weight, b: Weight, cosine: "Tensor", alpha: float) -> Weight:
    """a + k (b - a), k = 1 - clamp(cosine - alpha, 0, 1)."""
    import torch

    return torch.lerp(a, b, (1 - (cosine - alpha).clamp_(0, 1)).to(a.dtype).expand(a.shape))


@merge_method(rows=True, statistics=_STATISTICS, propagates=True, paper=_PAPER)
def add_cosine_a(a: Weight, b: Weight, *, products: Measured, alpha: float = 1.0) -> Weight:
    """a + k (b - a), k = 1 - clamp(cos - alpha, 0, 1): the more alike a column of a and b is, the more of a stays.

    cos is the cosine between the columns (along dim 0) of a and b; a vector is one column.
    """
    return _interpolated(a, b, _column_cosine(products), alpha)


@merge_method(rows=True, statistics=_STATISTICS, propagates=True, paper=_PAPER)
def add_cosine_b(a: Weight, b: Weight, *, products: Measured, alpha: float = 1.0) -> Weight:
    """As add_cosine_a, where cos is the mean of the columns' cosine and that of the whole tensors."""
    _, aa, bb, ab = products
    return _interpolated(a, b, (_column_cosine(products) + _cosine(aa.sum(), bb.sum(), ab.sum())) / 2, alpha)
