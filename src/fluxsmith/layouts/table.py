"""One declarative table per family: it gives names in every layout, all shapes, the expected keys and the blocks.

A table row is a tensor in *canonical* form (for FLUX.1: BFL names, fused, without prefix). A layout may store the
same rows in pieces and in another order; a `Piece` says which rows of its tensor are which rows of ours. As every
piece is a range of dim 0, both directions of every layout follow from this one statement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

__all__ = ["Canonical", "Dims", "Piece", "Row", "Segment", "Table", "linear", "scale"]

Dims = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [at, at + rows) of tensor `name` in a layout are rows [start, start + rows) of the canonical tensor."""

    name: str
    at: int
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of a canonical tensor that have a name of their own, such as `q` in a fused qkv."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Canonical:
    """One tensor in canonical form with its place in the model.

    `block` is `double.N` or `single.N` (None outside of blocks), `tags` are the part names a selector may use.
    """

    name: str
    shape: tuple[int, ...]
    block: str | None
    tags: frozenset[str]
    segments: tuple[Segment, ...]
    pieces: Mapping[str, tuple[Piece, ...]]

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Row:
    """One line of a table: a tensor stem for every depth of its block.

    `rows` are the dims whose sum is dim 0, `cols` those whose sum is dim 1 (None: a vector). `names` gives per layout
    the stems of its pieces, in the order of `rows`; `order` (per layout) permutes the parts inside one stem.
    `stored` gives the last word of the name where a layout has another one than the canonical.
    """

    stem: str
    suffixes: tuple[str, ...]
    rows: tuple[str, ...]
    cols: tuple[str, ...] | None
    names: Mapping[str, tuple[str, ...]]
    order: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])
    segments: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    optional: str | None = None


def linear(
    stem: str,
    rows: str,
    cols: str,
    *,
    segments: str = "",
    tags: str = "",
    order: Mapping[str, tuple[int, ...]] | None = None,
    optional: str | None = None,
    **names: str,
) -> Row:
    """A row for a linear layer, weight and bias; words in a string are separated by spaces."""
    split = {layout: tuple(text.split()) for layout, text in names.items()}
    return Row(
        stem, ("weight", "bias"), tuple(rows.split()), tuple(cols.split()), split,
        order or {}, tuple(segments.split()), tuple(tags.split()), optional,
    )  # fmt: skip


def scale(stem: str, rows: str, *, tags: str = "", **names: str) -> Row:
    """A row for a norm's scale, a vector called `.scale` in canonical names and `.weight` in diffusers."""
    split = {layout: (text,) for layout, text in names.items()}
    return Row(stem, ("scale",), (rows,), None, split, tags=tuple(tags.split()))


@dataclass(frozen=True)
class Table:
    """A family: its rows, its layouts and what its depths are called.

    `depths` maps a depth symbol to the canonical block list, e.g. {"double": "double_blocks"}; `depth_stems` gives
    per layout the text that a block list begins with. `flags` are optional parts, named by a key that shows them.
    """

    family: str
    layouts: tuple[str, ...]
    rows: tuple[Row, ...]
    depth_stems: Mapping[str, Mapping[str, str]]
    order: Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...] = ()
    suffixes: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, "Mapping[str, str]"])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])

    def expand(self, dims: Dims) -> list[Canonical]:
        """Every tensor of a model with these dims: widths, depths (`double`, `single`) and flags (0 or 1)."""
        tensors: list[Canonical] = []
        for row in self.rows:
            if row.optional and not dims.get(row.optional):
                continue
            depth = next((symbol for symbol in self.depth_stems if f"{{{symbol}}}" in row.stem), None)
            for index in range(dims[depth]) if depth else (None,):
                tensors += [self._tensor(row, suffix, depth, index, dims) for suffix in row.suffixes]
        return tensors

    def _tensor(self, row: Row, suffix: str, depth: str | None, index: int | None, dims: Dims) -> Canonical:
        fill = {depth: index} if depth else {}
        rows = [dims[symbol] for symbol in row.rows]
        starts = [sum(rows[:i]) for i in range(len(rows))]
        shape = (sum(rows),) if row.cols is None or suffix == "bias" else (sum(rows), sum(dims[c] for c in row.cols))
        stem = row.stem.format(**fill)
        pieces = {layout: tuple(self._pieces(row, suffix, layout, starts, rows, fill)) for layout in self.layouts}
        segments = tuple(Segment(name, starts[i], starts[i] + rows[i]) for i, name in enumerate(row.segments))
        tags = frozenset(part for part in stem.split(".") if not part.isdigit()) | frozenset(row.tags)
        block = f"{depth}.{index}" if depth else None
        return Canonical(f"{stem}.{suffix}", shape, block, tags, segments, pieces)

    def _pieces(
        self, row: Row, suffix: str, layout: str, starts: Sequence[int], rows: Sequence[int], fill: Mapping[str, object]
    ) -> list[Piece]:
        names = row.names.get(layout, (row.stem,))
        last = self.suffixes.get(layout, {}).get(suffix, suffix)
        name = f"{names[0].format(**fill)}.{last}"
        if len(names) > 1:
            return [Piece(f"{n.format(**fill)}.{last}", 0, starts[i], rows[i]) for i, n in enumerate(names)]
        order = row.order.get(layout)
        if order is None:
            return [Piece(name, 0, 0, sum(rows))]
        pieces: list[Piece] = []
        at = 0
        for part in order:
            pieces.append(Piece(name, at, starts[part], rows[part]))
            at += rows[part]
        return pieces
