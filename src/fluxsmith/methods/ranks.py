"""Ranks of magnitudes inside rows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["row_ranks"]


def row_ranks(rows: "Tensor") -> "Tensor":
    """For every element of [rows, width] the share of its row that has a smaller magnitude, in (0, 1), float32.

    The r-th smallest of n (r from 0) gets (r + 1/2) / n. Equal magnitudes are ranked by their column, so the result is
    the same on every machine.
    """
    import numpy as np
    import torch

    # Magnitude bits above the column make one integer, whose sort is the fastest there is, and stable.
    bits = rows.abs().float().cpu().numpy().view(np.uint32)
    count, width = bits.shape
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(width, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(0xFFFFFFFF)
    places = keys.view(np.int64)
    places += (np.arange(count, dtype=np.int64) * width)[:, None]
    ranks = np.empty(count * width, np.float32)
    steps = (np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(width)
    ranks[places.reshape(-1)] = np.broadcast_to(steps, (count, width)).reshape(-1)
    return torch.from_numpy(ranks.reshape(count, width)).to(rows.device)
