"""Counter-based random masks: Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

The key is made of (seed, tensor name, stream, input); the counter is the index of the element. So a mask depends
neither on threads, tiles or the order of work, nor on the device: it is drawn on the CPU and moved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CounterMasks", "uniform_u32"]

_PER_BLOCK = 8  # one Philox block gives four 64-bit words, eight 32-bit numbers


def uniform_u32(key: bytes, start: int, count: int) -> object:
    """Numbers [start, start + count) of a key's sequence of uniform 32-bit integers, as a numpy array."""
    import numpy as np

    first, skip = divmod(start, _PER_BLOCK)
    blocks = -(-(skip + count) // _PER_BLOCK)
    words = np.frombuffer(hashlib.blake2b(key, digest_size=16).digest(), dtype=np.uint64)
    generator = np.random.Philox(key=words, counter=[first, 0, 0, 0])
    return generator.random_raw(blocks * 4).view(np.uint32)[skip : skip + count]


class CounterMasks:
    """The masks of one method call on one tile: elements [start, start + count) of tensor `name`."""

    def __init__(self, seed: int, name: str, stream: int, start: int) -> None:
        self._seed, self._name, self._stream, self._start = seed, name, stream, start

    def keep(self, index: int, probability: float | Tensor, like: Tensor) -> Tensor:
        """True with `probability`, to one part in 2^32 (2^24 where it is a tensor), for every element of the tile."""
        import numpy as np
        import torch

        key = f"{self._seed}|{self._stream}|{index}|{self._name}".encode()
        numbers = np.asarray(uniform_u32(key, self._start, like.numel()))
        if isinstance(probability, torch.Tensor):
            # Whole numbers below 2^24 are exact in float32, and their comparison runs at the speed of memory.
            drawn = (numbers >> np.uint32(8)).view(np.int32).astype(np.float32)
            limits = probability.detach().reshape(-1).cpu().float().numpy() * np.float32(2**24)
            return torch.from_numpy(drawn < limits).to(like.device).reshape(like.shape)
        threshold = round(probability * 2**32)
        if threshold >= 2**32:
            return torch.ones(like.shape, dtype=torch.bool, device=like.device)
        return torch.from_numpy(numbers < np.uint32(threshold)).to(like.device).reshape(like.shape)
