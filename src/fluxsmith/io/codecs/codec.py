"""How a quantised tensor is stored, as plain data: its blocks, and the scales and tables that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.io.views import Extent

__all__ = ["Codec", "Side"]


@dataclass(frozen=True, slots=True)
class Side:
    """Numbers that a decoder needs beside the blocks: value i belongs to elements [i * every, (i + 1) * every) of the
    tensor. `every=0` is a table that belongs to all of them.
    """

    name: str
    extent: Extent
    every: int = 0

    def of(self, start: int, stop: int) -> Extent:
        """The values that belong to elements [start, stop), `start` being a multiple of `every`."""
        return self.extent.part(start // self.every, -(-stop // self.every)) if self.every else self.extent

    def among(self, values: Tensor, start: int, first: int, stop: int) -> Tensor:
        """Those of the values that belong to elements from `start` on which belong to elements [first, stop)."""
        return values[(first - start) // self.every : -(-(stop - start) // self.every)] if self.every else values


@dataclass(frozen=True, slots=True)
class Codec:
    """The stored form of one whole tensor of `count` elements, of `columns` elements a row.

    `scheme` names the decoder (codecs/decoding.py), `kind` the format within the scheme as its own documents call it
    (F8_E4M3, Q4_K, nf4, ...). Every `block` elements take `block_bytes` bytes; a last block may be shorter. `shift`
    is the one number that a scheme keeps outside of tensors (bitsandbytes' offset of nested scales).
    """

    scheme: str
    kind: str
    count: int
    columns: int
    block: int
    block_bytes: int
    sides: tuple[Side, ...] = ()
    shift: float = 0.0

    def every(self, side: str) -> int:
        """How many elements share a value of a side."""
        return next(found.every for found in self.sides if found.name == side)

    def cover(self, first: int, count: int) -> tuple[int, int]:
        """The elements [start, stop) of the whole blocks that elements [first, first + count) lie in."""
        return first // self.block * self.block, min(-(-(first + count) // self.block) * self.block, self.count)

    def byte(self, element: int) -> int:
        """The byte at which a block begins, or where the tensor ends."""
        return -(-element * self.block_bytes // self.block)
