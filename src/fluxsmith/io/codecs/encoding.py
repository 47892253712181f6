"""From values to quantised elements: scaled fp8 and int8, and the block types of GGUF.

    fp8    stored = round(w / scale), scale = absmax / largest of the type
    int8   stored = round(w * (1 / scale)), scale = absmax / 127.5, never below 2^-23 (torchao 0.18, quant_primitives.py)
    Q8_0   32 weights: d = absmax / 127 as float16, then round(w / d) as int8, halves away from zero (ggml-quants.c)
    Q4_0   32 weights: d = (the one of largest magnitude) / -8 as float16, then w / d + 8 in 4 bits, low halves of bytes first

As in ggml, weights are divided by the float32 d, though the float16 one is stored; all else is divided by the scale as it
is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxsmith.io.codecs.fp8 import values_of_fp8
from fluxsmith.io.dtypes import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Encoded", "encode_blocks", "encode_scaled", "scales_of"]

_LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0, "I8": 127.5}
_SMALLEST_SCALE = {"I8": 2.0**-23}


@dataclass(frozen=True)
class Encoded:
    """Elements as they are stored (bytes), and the float32 values that a reader will find in them."""

    stored: Tensor
    values: Tensor


def scales_of(largest: Tensor, dtype: str, scale_dtype: str) -> Tensor:
    """The scales, of type `scale_dtype`, with which magnitudes up to `largest` (any shape) just fit into a type.

    Zeros get the smallest scale that there is, so that nothing is divided by zero.
    """
    import torch

    kind: torch.dtype = getattr(torch, str(DTYPES[scale_dtype].torch))
    smallest = _SMALLEST_SCALE.get(dtype, float(torch.finfo(kind).tiny))
    return (largest.float() / _LARGEST[dtype]).clamp(min=smallest).to(kind)


def encode_scaled(values: Tensor, scales: Tensor, dtype: str) -> Encoded:
    """float32 values of shape (count,), divided by scales of shape (n,), each for count / n consecutive ones.

    The scales are those of `scales_of`: quotients are at most 2^-8 beyond the largest number of an fp8 type (where a scale was
    rounded down to bf16), and so are rounded to that number.
    """
    import torch

    kind: torch.dtype = getattr(torch, str(DTYPES[dtype].torch))
    parts, divisors = values.view(len(scales), -1), scales.float().view(-1, 1)
    if dtype == "I8":
        levels = (parts * (1.0 / divisors)).round_().clamp_(-128, 127)
        return Encoded(levels.to(kind).view(torch.uint8).reshape(-1), levels.mul_(divisors).reshape(-1))
    stored = (parts / divisors).to(kind).view(torch.uint8).reshape(-1)
    return Encoded(stored, values_of_fp8(stored, kind).view_as(parts).mul_(divisors).reshape(-1))


def encode_blocks(values: Tensor, dtype: str) -> Encoded:
    """float32 values of shape (count,), whole blocks, as a block type of GGUF."""
    return {"Q8_0": _q8_0, "Q4_0": _q4_0}[dtype](values.view(-1, 32))


def _q8_0(blocks: Tensor) -> Encoded:
    import torch

    d = blocks.abs().amax(1, keepdim=True).div_(127)
    scaled = blocks * _inverse(d)
    levels = scaled.abs()
    whole = levels.floor()
    levels.sub_(whole).mul_(2).floor_().add_(whole).copysign_(scaled)  # halves away from zero
    half = d.half()
    stored = torch.cat([half.view(torch.uint8), levels.to(torch.int8).view(torch.uint8)], 1)
    return Encoded(stored.reshape(-1), levels.mul_(half.float()).reshape(-1))


def _q4_0(blocks: Tensor) -> Encoded:
    import torch

    d = _of_largest_magnitude(blocks) / -8
    levels = (blocks * _inverse(d)).add_(8.5).trunc_().clamp_(0, 15)
    half, bits = d.half(), levels.to(torch.uint8)
    stored = torch.cat([half.view(torch.uint8), bits[:, :16] | bits[:, 16:] << 4], 1)
    return Encoded(stored.reshape(-1), levels.sub_(8).mul_(half.float()).reshape(-1))


def _of_largest_magnitude(blocks: Tensor) -> Tensor:
    """The element of largest magnitude of every row, [n, 1]; the first one where two with different signs are as large."""
    import torch

    high, low = blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True)
    found = torch.where(high > -low, high, low)
    ties = (high == -low).view(-1).nonzero().view(-1)
    rows = blocks[ties]
    found[ties] = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return found


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and 0 for blocks of zeros."""
    import torch

    return torch.where(d == 0, 0.0, 1.0 / d)
