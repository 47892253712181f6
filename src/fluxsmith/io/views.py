"""A tensor is a list of byte extents (DESIGN 1.1): views of stored tensors that are cut and joined without reading.

Every map between FLUX layouts works on dim 0 of row-major tensors, so a map of layouts is arithmetic on extents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from fluxsmith.io.dtypes import DTYPES

__all__ = ["Extent", "View"]


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` consecutive elements of type `dtype` (a safetensors name) at byte `offset` of `file`."""

    file: str
    offset: int
    count: int
    dtype: str

    def part(self, start: int, stop: int) -> "Extent":
        """Elements [start, stop) of this extent."""
        width = DTYPES[self.dtype].bits // 8
        return Extent(self.file, self.offset + start * width, stop - start, self.dtype)

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].nbytes(self.count)


@dataclass(frozen=True, slots=True)
class View:
    """A row-major tensor of `shape` whose elements are the extents, one after another.

    `transposed` says that the extents hold a matrix of shape (n, m) column by column, as a stored (m, n): the one
    rearrangement that is no arithmetic on extents. Such a view is read whole and is not cut.
    """

    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    transposed: bool = False

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(extent.nbytes for extent in self.extents)

    @property
    def dtypes(self) -> set[str]:
        """The element types found in the extents; more than one where a fused tensor was stored in pieces."""
        return {extent.dtype for extent in self.extents}

    def cut(self, start: int, stop: int) -> Iterator[Extent]:
        """The extents that hold elements [start, stop)."""
        at = 0
        for extent in self.extents:
            first, last = max(start - at, 0), min(stop - at, extent.count)
            if first < last:
                yield extent.part(first, last)
            at += extent.count
            if at >= stop:
                return

    def rows(self, start: int, stop: int) -> "View":
        """Rows [start, stop) along dim 0."""
        width = prod(self.shape[1:])
        return View((stop - start, *self.shape[1:]), tuple(self.cut(start * width, stop * width)))

    @staticmethod
    def stack(views: "list[View]") -> "View":
        """Views with equal trailing dims, joined along dim 0; neighbouring extents become one."""
        joined: list[Extent] = []
        for extent in (e for view in views for e in view.extents):
            last = joined[-1] if joined else None
            if last and (last.file, last.dtype, last.offset + last.nbytes) == (extent.file, extent.dtype, extent.offset):
                joined[-1] = Extent(last.file, last.offset, last.count + extent.count, last.dtype)
            else:
                joined.append(extent)
        shape = (sum(view.shape[0] for view in views), *views[0].shape[1:])
        return View(shape, tuple(joined))
