"""Masks from three checkpoints that say, per element, how much of a difference to add: for `alpha` of add_difference."""

from fluxsmith.methods.base import Param, Weight, merge_method

__all__ = ["add_opposite_mask", "add_strict_opposite_mask", "train_difference_mask"]

_PAPER = "hako-mikan, sd-webui-supermerger; sd-mecha"


def _quotient(numerator: Weight, divisor: Weight) -> Param:
    """The quotient of magnitudes of which the second is at least as large as the first; 0 where both are 0."""
    import torch

    return numerator.div_(divisor.clamp_(min=torch.finfo(divisor.dtype).tiny))


@merge_method(paper=_PAPER)
def train_difference_mask(a: Weight, b: Weight, c: Weight, *, alpha: float | Param = 1.0) -> Param:
    """1.8 alpha |b - a| / (|b - a| + |b - c|), 0 where b equals both.

    add_difference(a, b, c) with this mask adds what b learned over c, less where a is near to b already.
    """
    near = (b - a).abs_()
    return _quotient(near, (b - c).abs_().add_(near)).mul_(alpha).mul_(1.8)


@merge_method(paper=_PAPER)
def add_opposite_mask(a: Weight, b: Weight, c: Weight, *, alpha: float | Param = 1.0) -> Param:
    """2 alpha |a - b| / (|a - b| + |a + b - 2 c|): near 2 where a and b moved from c in opposite directions."""
    apart = (a - b).abs_()
    together = (a + b).sub_(c, alpha=2).abs_()
    return _quotient(apart, together.add_(apart)).mul_(alpha).mul_(2)


@merge_method(paper=_PAPER)
def add_strict_opposite_mask(a: Weight, b: Weight, c: Weight, *, alpha: float | Param = 1.0) -> Param:
    """2 alpha max(0, -(a - c)(b - c) / max(|a - c|, |b - c|)^2): 0 wherever a and b moved in one direction."""
    import torch

    one, other = a - c, b - c
    largest = torch.maximum(one.abs(), other.abs()).clamp_(min=torch.finfo(a.dtype).tiny)
    return one.div_(largest).mul_(other.div_(largest)).neg_().relu_().mul_(alpha).mul_(2)
