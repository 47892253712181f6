"""Interpolation and analogy of logarithms."""

import math

from fluxsmith.methods.base import Param, Same, Weight, merge_method

__all__ = ["geometric_sum", "multiply_quotient"]

_PAPER = "sd-mecha"


@merge_method(paper=_PAPER)
def geometric_sum(a: Same, b: Same, *, alpha: float | Param = 0.5) -> Same:
    """The real part of a^(1-alpha) b^alpha, with principal powers of negative numbers.

    |a|^(1-alpha) |b|^alpha cos(pi ((1-alpha) [a < 0] + alpha [b < 0])): numbers of one sign keep their size, those of
    different signs vanish half way.
    """
    import torch

    size = a.abs().pow_(1 - alpha).mul_(b.abs().pow_(alpha))
    below_a, below_b = (torch.lt(t, 0, out=torch.empty_like(t)) for t in (a, b))
    return below_a.mul_(1 - alpha).add_(below_b.mul_(alpha)).mul_(math.pi).cos_().mul_(size)


@merge_method(paper=_PAPER)
def multiply_quotient(a: Weight, b: Weight, c: Weight, *, alpha: float | Param = 1.0) -> Weight:
    """The real part of a (b / c)^p: what turned c into b as a factor, where a moved from c in the other direction.

    p = alpha max(0, -x y / max(|x|, |y|)^2) with x = log|a/c| and y = log|b/c|, 0 where that has no value; then a stays.
    """
    import torch

    size = c.abs().log_()
    x, y = (t.abs().log_().sub_(size) for t in (a, b))
    largest = torch.maximum(x.abs(), y.abs())
    power = (x / largest).mul_(y / largest).neg_().nan_to_num_(nan=0.0).relu_().mul_(alpha)
    turned = torch.lt(b * c.sign(), 0, out=torch.empty_like(a)).mul_(math.pi)
    found = (power * y).exp_().mul_(a).mul_(turned.mul_(power).cos_())
    return torch.where(found.isfinite() & (power > 0), found, a)
