"""Copy a region of one checkpoint into another: a run of rows, or elements of a range of magnitudes."""

import math
from typing import TYPE_CHECKING

from fluxsmith.methods.base import Same, merge_method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["region", "tensor_sum", "top_k_tensor_sum"]


def region(width: float, offset: float, size: int) -> tuple[int, int, bool]:
    """The run of a ring of `size` places that begins at the share `offset` and takes up the share `width` (negative: it
    ends there): first, last, and whether the run is what lies outside of [first, last).
    """
    if width < 0:
        width, offset = -width, offset + width
    width, offset = min(width, 1.0), offset - math.floor(offset)
    end = offset + width
    if end <= 1:
        return round(offset * size), round(end * size), False
    return round((end - 1) * size), round(offset * size), True


@merge_method(whole=True, workspace=lambda rows, columns, inputs: rows * columns, propagates=False, paper="Elemental merge; sd-mecha")
def tensor_sum(a: Same, b: Same, *, width: float = 0.5, offset: float = 0.0) -> Same:
    """a with a run of rows (along dim 0) of b: the share `width` of all rows from the share `offset` on.

    A run that passes the end goes on at the beginning. A scalar is b's where width is more than a half.
    """
    if a.dim() == 0:
        return b.clone() if width > 0.5 else a.clone()
    first, last, outside = region(width, offset, a.shape[0])
    result, source = (b.clone(), a) if outside else (a.clone(), b)
    result[first:last] = source[first:last]
    return result


@merge_method(whole=True, workspace=lambda rows, columns, inputs: 10.6 * rows * columns, paper="sd-mecha")
def top_k_tensor_sum(a: Same, b: Same, *, width: float = 1.0, offset: float = 0.0) -> Same:
    """The values of a in the order of b: its r-th smallest value goes where b has its own r-th smallest.

    Only values whose magnitude is in a range move in: from the share `offset` of the magnitudes of a, sorted, on, as
    wide as the share `width` (outside of it where it passes the end). Elsewhere a stays.
    """
    import numpy as np
    import torch

    flat = a.reshape(-1)
    ordered = np.sort(flat.float().cpu().numpy())
    first, last, outside = region(width, offset, flat.numel())
    chosen = _in_range(ordered, first, last) != outside
    order = torch.from_numpy(np.argsort(b.reshape(-1).float().cpu().numpy(), kind="stable"))
    values = torch.from_numpy(np.where(chosen, ordered, np.float32(0.0))).to(flat)
    result = flat.clone()
    moved = torch.from_numpy(chosen).to(order.device)
    result[order[moved].to(flat.device)] = values[moved.to(values.device)]
    return result.reshape(a.shape)


def _in_range(ordered: "Tensor | object", first: int, last: int) -> "object":
    """Which values have a magnitude from the `first`-th to the `last`-th smallest (from 1; below 1: none is too small)."""
    import numpy as np

    magnitudes = np.abs(np.asarray(ordered))
    ranked = np.sort(magnitudes)
    low = ranked[first - 1] if first > 0 else -1.0
    high = ranked[last - 1] if last > 0 else -1.0
    return (magnitudes >= low) & (magnitudes <= high)
