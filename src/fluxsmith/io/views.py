"""A tensor is a list of byte extents (DESIGN 1.1): views of stored tensors that are cut and joined without reading.

Every map between FLUX layouts works on dim 0 of row-major tensors, so a map of layouts is arithmetic on extents.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from fluxsmith.io.codecs.codec import Codec
from fluxsmith.io.dtypes import DTYPES

__all__ = ["Extent", "View"]


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` consecutive elements of type `dtype` (a safetensors name) at byte `offset` of `file`.

    With a `codec` the elements are those from `first` on of a quantised tensor whose stored bytes begin at `offset`,
    and `dtype` is the type that a plain file would give its values.
    """

    file: str
    offset: int
    count: int
    dtype: str
    codec: Codec | None = None
    first: int = 0

    def part(self, start: int, stop: int) -> "Extent":
        """Elements [start, stop) of this extent."""
        if self.codec is not None:
            return replace(self, count=stop - start, first=self.first + start)
        width = DTYPES[self.dtype].bits // 8
        return Extent(self.file, self.offset + start * width, stop - start, self.dtype)

    @property
    def stored(self) -> "Extent":
        """The plain bytes to read: itself, or of quantised elements the whole blocks that they lie in, as U8."""
        if self.codec is None:
            return self
        start, stop = map(self.codec.byte, self.codec.cover(self.first, self.count))
        return Extent(self.file, self.offset + start, stop - start, "U8")

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].nbytes(self.count) if self.codec is None else self.stored.count

    def joined(self, other: "Extent") -> "Extent | None":
        """This extent and one that begins where it ends as one; None where `other` lies elsewhere or is stored otherwise."""
        if (self.file, self.dtype, self.codec) != (other.file, other.dtype, other.codec):
            return None
        if self.codec is None:
            adjacent = self.offset + self.nbytes == other.offset
        else:
            adjacent = self.offset == other.offset and self.first + self.count == other.first
        return replace(self, count=self.count + other.count) if adjacent else None


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

    @property
    def kinds(self) -> set[str]:
        """How the elements are stored: the format of quantised ones (Q4_K, nf4, ...), the type of plain ones."""
        return {extent.codec.kind if extent.codec else extent.dtype for extent in self.extents}

    @property
    def coded(self) -> bool:
        """Whether some of the elements are quantised: then equal types do not mean that bytes can be copied."""
        return any(extent.codec is not None for extent in self.extents)

    def stores(self, dtype: str) -> bool:
        """Whether the bytes are those of a plain tensor of this type."""
        return not self.coded and self.dtypes == {dtype}

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
            longer = joined[-1].joined(extent) if joined else None
            if longer is None:
                joined.append(extent)
            else:
                joined[-1] = longer
        shape = (sum(view.shape[0] for view in views), *views[0].shape[1:])
        return View(shape, tuple(joined))
