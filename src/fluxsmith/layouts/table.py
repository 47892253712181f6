"""One declarative table per family: it gives names in every layout, all shapes, the expected keys and the blocks.

A table row is a tensor in *canonical* form (for FLUX.1: BFL names, fused, without prefix). A layout may store the
same rows in pieces and in another order; a `Piece` says which rows of its tensor are which rows of ours. As every
piece is a range of dim 0, both directions of every layout follow from this one statement.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

__all__ = [
    "ORIGINAL",
    "Canonical",
    "Dims",
    "Piece",
    "Row",
    "Segment",
    "Table",
    "conv",
    "joined",
    "linear",
    "norm",
    "places",
    "scale",
    "size",
    "stored_shapes",
]

Dims = Mapping[str, int]
#: What the one layout of a family is called that was learnt from a file.
ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [at, at + rows) of tensor `name` in a layout are rows [start, start + rows) of the canonical tensor.

    `trailing` gives the dims after dim 0 where the layout has others for the same elements (a 1x1 convolution stored
    as a matrix); `transposed` says that the layout stores the whole matrix with its dims exchanged.
    """

    name: str
    at: int
    start: int
    rows: int
    trailing: tuple[int, ...] | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of a canonical tensor that have a name of their own, such as `q` in a fused qkv."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Canonical:
    """One tensor in canonical form with its place in the model.

    `block` is `double.N`, `single.N`, `in.N` ... (None outside of blocks), `tags` are the part names that a selector
    may use, `component` is the part of the pipeline: transformer, unet, clip_l, vae, ... A layout without a name in
    `pieces` has no such tensor.
    """

    name: str
    shape: tuple[int, ...]
    block: str | None
    tags: frozenset[str]
    segments: tuple[Segment, ...]
    pieces: Mapping[str, tuple[Piece, ...]]
    component: str = "transformer"

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Row:
    """One line of a table: a tensor stem for every depth of its block.

    `rows` are the dims whose sum is dim 0, `cols` those whose sum is dim 1 (None: a vector), `kernel` the dims after
    that; a dim is a symbol or a number written out. `names` gives per layout the stems of its pieces, in the order of
    `rows`, or one stem for all of them; a layout with an empty list has no such tensor, one that is not named has
    the canonical stem. `order` (per layout) permutes the parts inside one stem, `forms` says where a layout stores the
    matrix otherwise: `linear` (without the kernel) or `transposed`. `where` limits a row to some of its blocks:
    `last`, `others` (all but the last), a symbol (as many of the first) or `~symbol` (all but those).
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
    kernel: tuple[str, ...] = ()
    forms: Mapping[str, str] = field(default_factory=dict[str, str])
    block: str | None = None
    where: str = ""
    component: str = "transformer"

    def stems(self, layout: str) -> tuple[str, ...]:
        """The stems under which a layout stores this row, none where it does not."""
        return self.names.get(layout, (self.stem,))

    def shape(self, suffix: str, dims: Dims) -> tuple[int, ...]:
        """The canonical shape of the tensor with this suffix."""
        first = sum(size(symbol, dims) for symbol in self.rows)
        if self.cols is None or suffix == "bias":
            return (first,) if self.rows else ()
        return (first, sum(size(symbol, dims) for symbol in self.cols), *(size(symbol, dims) for symbol in self.kernel))


def size(symbol: str, dims: Dims) -> int:
    """The value of a dim: a number as it is written, else what the model has for the symbol."""
    return int(symbol) if symbol.isdigit() else dims[symbol]


def joined(stem: str, suffix: str) -> str:
    """A key of a stem and its last word; `in_proj_` takes it without a dot, and a stem without last word is the key."""
    return f"{stem}{suffix}" if not suffix or stem.endswith("_") else f"{stem}.{suffix}"


def linear(
    stem: str,
    rows: str,
    cols: str,
    *,
    segments: str = "",
    tags: str = "",
    order: Mapping[str, tuple[int, ...]] | None = None,
    optional: str | None = None,
    bias: bool = True,
    where: str = "",
    **names: str,
) -> Row:
    """A row for a linear layer, weight and bias; words in a string are separated by spaces."""
    split = {layout: tuple(text.split()) for layout, text in names.items()}
    return Row(
        stem, ("weight", "bias") if bias else ("weight",), tuple(rows.split()), tuple(cols.split()), split,
        order or {}, tuple(segments.split()), tuple(tags.split()), optional, where=where,
    )  # fmt: skip


def conv(stem: str, rows: str, cols: str, kernel: int, *, forms: Mapping[str, str] | None = None, tags: str = "", **names: str) -> Row:
    """A row for a square convolution of `kernel` by `kernel`, weight and bias."""
    split = {layout: tuple(text.split()) for layout, text in names.items()}
    return Row(
        stem, ("weight", "bias"), tuple(rows.split()), tuple(cols.split()), split,
        tags=tuple(tags.split()), kernel=(str(kernel),) * 2, forms=forms or {},
    )  # fmt: skip


def scale(stem: str, rows: str, *, tags: str = "", where: str = "", optional: str | None = None, **names: str) -> Row:
    """A row for a norm's scale, a vector called `.scale` in canonical names and `.weight` in diffusers."""
    split = {layout: (text,) for layout, text in names.items()}
    return Row(stem, ("scale",), (rows,), None, split, tags=tuple(tags.split()), where=where, optional=optional)


def norm(stem: str, rows: str, *, tags: str = "", **names: str) -> Row:
    """A row for a norm with weight and bias."""
    split = {layout: (text,) for layout, text in names.items()}
    return Row(stem, ("weight", "bias"), tuple(rows.split()), None, split, tags=tuple(tags.split()))


@dataclass(frozen=True, eq=False)
class Table:
    """A family: its rows, its layouts and what its depths are called.

    `depth_stems` gives per depth symbol and layout the text that its block list begins with, e.g. {"double":
    {"bfl": "double_blocks", ...}}; `blocks` names the symbols whose lists are blocks for selectors and ramps (none:
    all). `flags` are optional parts, named by a key that shows them. `prefixes` gives, for a family of several
    components, what may stand before the keys of each in each layout; the first one is written. The component that
    gives the family its name is left out of it where its files are its own, whatever stands before their keys, and
    only ComfyUI's all-in-one file has the others. Tables are compared by identity.
    """

    family: str
    layouts: tuple[str, ...]
    rows: tuple[Row, ...]
    depth_stems: Mapping[str, Mapping[str, str]]
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    flags: tuple[str, ...] = ()
    suffixes: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, "Mapping[str, str]"])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    blocks: tuple[str, ...] = ()
    #: The beginning of names that only this family has: without any of them a file is none of it.
    signature: str = ""
    prefixes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict[str, "Mapping[str, tuple[str, ...]]"])

    #: Keys of its files that are no weights: (regular expression, what they are). They are left out, and counted.
    drops: tuple[tuple[str, str], ...] = ()
    #: Whole keys that mark what kind of model a file holds: no weights, copied as they are into the original layout.
    marks: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """The components that the family has, the one that gives it its name first."""
        return tuple(dict.fromkeys(row.component for row in self.rows))

    @property
    def comfy_only(self) -> tuple[str, ...]:
        """The components that no layout has but ComfyUI's all-in-one file."""
        return () if self.components[0] in self.prefixes else tuple(self.prefixes)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What the blocks of the family are called: double, single, in, mid, ... (text encoders' by their component)."""
        named = {row.block.partition(".")[0] for row in self.rows if row.block}
        return frozenset((named | set(self.blocks or self.depth_stems)) - set(self.components))

    def why_dropped(self, key: str) -> str | None:
        """What a key of a file is that is no weight; None for any other."""
        return next((what for pattern, what in self.drops if re.search(pattern, key)), None)

    def counted(self, row: Row) -> str | None:
        """The symbol that says in how many of its blocks a row stands, where it is not in all of them."""
        return None if row.where in ("", "last", "others") else row.where.removeprefix("~")

    def depth_of(self, row: Row) -> str | None:
        """The depth symbol of a row that stands in a list of blocks."""
        return next((symbol for symbol in self.depth_stems if f"{{{symbol}}}" in row.stem), None)

    def expand(self, dims: Dims, components: Collection[str] | None = None) -> list[Canonical]:
        """Every tensor of a model with these dims: widths, depths (`double`, `single`) and flags (0 or 1).

        `components` limits it to some (None: all that `dims` has numbers of), of which alone the dims need be known.
        """
        if components is None:
            components = {row.component for row in self.rows if all(symbol.isdigit() or symbol in dims for symbol in row.rows)}
        tensors: list[Canonical] = []
        for row in self.rows:
            if (row.optional and not dims.get(row.optional)) or row.component not in components:
                continue
            depth = self.depth_of(row)
            for index in places(row, dims[depth], dims) if depth else (None,):
                tensors += [self._tensor(row, suffix, depth, index, dims) for suffix in row.suffixes]
        return tensors

    def key(self, stem: str, suffix: str, layout: str, fill: Mapping[str, object]) -> str:
        """The name of a stored tensor in a layout; `fill` gives the numbers of blocks."""
        return joined(stem.format(**fill), self.suffixes.get(layout, {}).get(suffix, suffix))

    def _tensor(self, row: Row, suffix: str, depth: str | None, index: int | None, dims: Dims) -> Canonical:
        fill = {depth: index} if depth else {}
        rows = [size(symbol, dims) for symbol in row.rows]
        starts = [sum(rows[:i]) for i in range(len(rows))]
        stem = row.stem.format(**fill)
        shape = row.shape(suffix, dims)
        found = {layout: tuple(self._pieces(row, suffix, layout, starts, rows, shape, fill)) for layout in self.layouts}
        segments = tuple(Segment(name, starts[i], starts[i] + rows[i]) for i, name in enumerate(row.segments))
        # What blocks are called is no part of a tensor: `mid` means the U-Net's block, not also the middle of a VAE.
        tags = (frozenset(part for part in stem.split(".") if not part.isdigit()) | frozenset(row.tags)) - self.kinds
        block = row.block or (f"{depth}.{index}" if depth and (not self.blocks or depth in self.blocks) else None)
        pieces = {layout: parts for layout, parts in found.items() if parts}
        return Canonical(joined(stem, suffix), shape, block, tags, segments, pieces, row.component)

    def _pieces(
        self, row: Row, suffix: str, layout: str, starts: Sequence[int], rows: Sequence[int],
        shape: tuple[int, ...], fill: Mapping[str, object],
    ) -> list[Piece]:  # fmt: skip
        keys = [self.key(stem, suffix, layout, fill) for stem in row.stems(layout)]
        form = row.forms.get(layout, "") if suffix != "bias" else ""
        if len(keys) > 1:
            return [Piece(key, 0, starts[i], rows[i]) for i, key in enumerate(keys)]
        order = row.order.get(layout)
        if order is None or not keys:
            trailing = shape[1:2] if form == "linear" else None
            return [Piece(key, 0, 0, sum(rows) if rows else 1, trailing, form == "transposed") for key in keys]
        pieces: list[Piece] = []
        at = 0
        for part in order:
            pieces.append(Piece(keys[0], at, starts[part], rows[part]))
            at += rows[part]
        return pieces


def stored_shapes(spec: Iterable[Canonical], layout: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a layout stores, in the order of the canonical tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in spec:
        for piece in tensor.pieces.get(layout, ()):
            if piece.transposed:
                shapes[piece.name] = tensor.shape[::-1]
                continue
            rows = shapes.get(piece.name, (0,))[0] + piece.rows
            trailing = tensor.shape[1:] if piece.trailing is None else piece.trailing
            shapes[piece.name] = (rows, *trailing) if tensor.shape else ()
    return shapes


def places(row: Row, depth: int, dims: Dims) -> range:
    """The block numbers that a row is there for, in a list of `depth` blocks."""
    if row.where == "last":
        return range(max(depth - 1, 0), depth)
    if row.where == "others":
        return range(depth - 1)
    first = min(dims.get(row.where.removeprefix("~"), 0), depth) if row.where else 0
    return range(first) if row.where and not row.where.startswith("~") else range(first, depth)
