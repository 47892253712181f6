"""Low frequencies of one checkpoint with high frequencies of another."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fluxsmith.methods.base import Same, Share, merge_method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["crossover", "frequency_filter"]


def frequency_filter(shape: Sequence[int], alpha: float, tilt: float) -> "Tensor":
    """The share of the second input at every frequency of rfftn of a tensor of `shape`.

    A frequency's height is the root mean square of its heights along the dims, each from 0 to 1. With tilt 0 the second
    input has those above 1 - alpha; tilt 1 gives it alpha of all; between, the step becomes a ramp. From 1 to 2 the
    step turns round (2: it has those below 1 - alpha), and from 2 to 4 back again through the other side.
    """

    tilt %= 4
    if tilt > 2:
        return 1 - _filter(_heights(shape), 1 - alpha, tilt)
    return _filter(_heights(shape), alpha, tilt)


def _heights(shape: Sequence[int]) -> "Tensor":
    import torch

    squares = torch.zeros(1)
    for i, size in enumerate(shape):
        if i == len(shape) - 1:
            places = torch.linspace(0, 1, size // 2 + 1)
        else:
            places = torch.arange(size)
            places = torch.minimum(places, size - places) / max(size // 2, 1)
        squares = squares.unsqueeze(-1) + places.square()
    return (squares.squeeze(0) / len(shape)).sqrt_()


def _filter(heights: "Tensor", alpha: float, tilt: float) -> "Tensor":
    if tilt < 1e-10 or tilt > 4 - 1e-10:
        return (heights > 1 - alpha).float()
    if abs(tilt - 2) < 1e-10:
        return (heights < 1 - alpha).float()
    slope = 1 / math.tan(math.pi * tilt / 2)
    start = alpha * slope + alpha - slope if tilt <= 1 or 2 < tilt <= 3 else alpha - alpha * slope
    return heights.mul_(slope).add_(start).clamp_(0, 1)


@merge_method(whole=True, workspace=lambda rows, columns, inputs: 3.75 * rows * (columns + 2), propagates=True, paper="sd-mecha")
def crossover(a: Same, b: Same, *, alpha: Share = 0.5, tilt: float = 0.0) -> Same:
    """irfftn((1 - f) rfftn(a) + f rfftn(b)) with the filter f(alpha, tilt): at alpha 0 all of a, at 1 all of b.

    With tilt 0 b gives the frequencies above 1 - alpha and a those below; with tilt 1 it is the weighted sum.
    """
    import torch

    if a.dim() == 0 or tilt % 4 == 1 or alpha in (0.0, 1.0):
        return a.lerp(b, alpha)
    spectrum = torch.fft.rfftn(a.float())
    share = frequency_filter(a.shape, alpha, tilt).to(a.device)
    other = torch.fft.rfftn(b.float())
    spectrum.add_(other.sub_(spectrum).mul_(share))
    del other
    return torch.fft.irfftn(spectrum, s=a.shape).to(a.dtype)
