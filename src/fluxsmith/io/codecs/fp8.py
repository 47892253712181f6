"""The values of fp8 numbers, from a table of all 256: on the CPU torch's own conversion takes five times as long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["values_of_fp8"]


def values_of_fp8(stored: Tensor, kind: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The float32 values of bytes (uint8, flat, on the CPU) of an fp8 type, in `out` where that is given."""
    import torch

    table = torch.arange(256, dtype=torch.uint8).view(kind).float()
    return torch.index_select(table, 0, stored.int(), out=out)
