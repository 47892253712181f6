"""NuSLERP: spherical interpolation without normalising, of whole tensors, of rows or of columns."""

from typing import TYPE_CHECKING, Any, Literal

from fluxsmith.methods.base import Measured, Same, merge_method
from fluxsmith.methods.columns import column_products
from fluxsmith.methods.span import themselves
from fluxsmith.methods.statistics import column_sums, gram, when

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["nuslerp"]

_COLINEAR = 1e-16


def _factors(aa: "Tensor", bb: "Tensor", ab: "Tensor", alpha: float) -> "tuple[Tensor, Tensor]":
    """What both tensors are multiplied by, in float64; linear where the vectors are on one line or zero."""
    import torch

    cosine = (ab / (aa * bb).sqrt()).clamp(-1, 1)
    sine = (1 - cosine.square()).sqrt()
    angle = torch.atan2(sine, cosine)
    curved = (aa > 0) & (bb > 0) & (sine.square() > _COLINEAR)
    left, right = (((1 - alpha) * angle).sin() / sine, (alpha * angle).sin() / sine)
    return torch.where(curved, left, 1 - alpha), torch.where(curved, right, alpha)


@merge_method(
    rows=True,
    statistics={
        "products": when("over", "tensor", gram(themselves)),
        "column_products": when("over", "columns", column_sums(column_products)),
    },
    paper="mergekit, nuslerp",
)
def nuslerp(
    a: Same,
    b: Same,
    *,
    products: Measured,
    column_products: Measured,
    alpha: float = 0.5,
    over: Literal["tensor", "rows", "columns"] = "tensor",
) -> Same:
    """(sin((1-alpha) w) a + sin(alpha w) b) / sin(w), with w the angle between whole tensors, rows or columns.

    Where a and b differ in norm the result leaves the arc (slerp interpolates norms). Vectors on one line are
    interpolated linearly; a bias is one row. Around a base: `base + nuslerp(a - base, b - base)`.
    """
    left, right = _factors(*_products(a, b, products, column_products, over), alpha)
    return (a * left.to(a.dtype)).add_(b * right.to(b.dtype))


def _products(a: Same, b: Same, products: Any, columns: Any, over: str) -> "tuple[Tensor, Tensor, Tensor]":
    """<a, a>, <b, b> and <a, b> in a shape that multiplies rows."""
    import torch

    if over == "tensor":
        return tuple(torch.tensor(products[i][j], dtype=torch.float64, device=a.device) for i, j in ((0, 0), (1, 1), (0, 1)))  # pyright: ignore[reportReturnType]
    if over == "rows":
        x, y = a.double(), b.double()
        return (x * x).sum(1, keepdim=True), (y * y).sum(1, keepdim=True), (x * y).sum(1, keepdim=True)
    rows, *found = columns
    return tuple(column.sum() if float(rows[0]) == 1 else column for column in found)  # pyright: ignore[reportReturnType]
