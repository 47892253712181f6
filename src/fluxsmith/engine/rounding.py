"""How much of a delta is rounding: checkpoints of half types are rounded weights, and so is their difference.

A weight w that was rounded to a type with p bits after the point is off by up to half a unit in its last place,
u = 2^(floor(log2 |w|) - p), evenly spread: its error has the variance u^2 / 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fluxsmith.engine.plan import Apply, Job, Load

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["rounding_steps", "rounding_tile"]

_BITS = {"BF16": 7, "F16": 10, "F8_E4M3": 3, "F8_E5M2": 2, "F32": 23, "F64": 52}


def rounding_steps(job: Job) -> dict[int, float] | None:
    """For a job that is a sum of checkpoints: the steps that load them, each with the factor by which the sum of the
    squares of its powers of two becomes the expected energy of the error. None for other jobs."""
    last = job.program[-1]
    if not isinstance(last, Apply) or last.method != "combination":
        return None
    found: dict[int, float] = {}
    for index, weight in zip(last.inputs, last.options["weights"], strict=True):
        step = job.program[index]
        if not isinstance(step, Load) or step.view.coded or len(step.view.dtypes) != 1:
            return None
        bits = _BITS.get(next(iter(step.view.dtypes)))
        if bits is None:
            return None
        found[index] = weight**2 * 4.0**-bits / 12
    return found


def rounding_tile(inputs: Sequence[Tensor], factors: Sequence[float], width: int) -> Tensor:
    """The expected energy of the error of every row of a tile, float64; `inputs` are flat, of whole rows of `width`."""
    import torch

    total = torch.zeros(inputs[0].numel() // width, dtype=torch.float64)
    for tile, factor in zip(inputs, factors, strict=True):
        # The exponent bits alone are the power of two below |w|.
        power = (tile.float().contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
        total += power.reshape(-1, width).square().sum(dim=1).double().cpu() * factor
    return total
