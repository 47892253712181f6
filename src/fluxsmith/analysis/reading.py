"""A model read as far as it goes: which stored key is which canonical tensor, and what a whole model has besides.

Merging refuses an incomplete or unusual file; here the same table says what there is of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts.binding import namer, solve_dims
from fluxsmith.layouts.detection import Candidate
from fluxsmith.layouts.table import Canonical, Dims, Piece, Table, stored_shapes

__all__ = ["Place", "Reading", "read_as"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored tensor stands in the model: a canonical name, rows of it where it is only a part, block, component."""

    name: str
    rows: tuple[int, int] | None
    block: str
    component: str

    def __str__(self) -> str:
        return self.name if self.rows is None else f"{self.name}[{self.rows[0]}:{self.rows[1]}]"


@dataclass(frozen=True)
class Reading:
    """A checkpoint as a table reads it. `places` are stored keys of the model, `missing` names that a whole one has
    besides (in this layout), `unknown` keys under the prefix that no model has, `misshapen` keys with found and
    expected shape.
    """

    dims: Dims
    places: Mapping[str, Place]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def read_as(checkpoint: Checkpoint, candidate: Candidate, aside: set[str], packed: set[str]) -> Reading:
    """Read a checkpoint as `candidate` says; keys `aside` are no weights, the shapes of `packed` ones mean nothing."""
    table, layout = candidate.table, candidate.layout
    name_of = namer(table, layout, candidate.prefixes)
    names = {key: name for key in checkpoint.tensors if key not in aside and (name := name_of(key)) is not None}
    stored = {name: key for key, name in names.items() if key not in table.marks and not any(re.search(p, key) for p, _ in table.drops)}
    shapes = {name: checkpoint.tensors[key].shape if key not in packed else () for name, key in stored.items()}
    dims = solve_dims(table, layout, _without_gaps(shapes, table, layout), checkpoint.reference)
    tensors = table.expand(dims, candidate.prefixes)
    expected, sizes = _pieces(tensors, layout), stored_shapes(tensors, layout)
    places = {stored[name]: _place(pieces) for name, pieces in expected.items() if name in stored}
    wrong = {
        stored[name]: (shapes[name], shape)
        for name, shape in sizes.items()
        if name in stored and stored[name] not in packed and shapes[name] != shape
    }
    before = {component: "" if component in table.prefixes else prefix for component, prefix in candidate.prefixes.items()}
    missing = tuple(before[pieces[0][0].component] + name for name, pieces in expected.items() if name not in stored)
    unknown = tuple(key for name, key in stored.items() if name not in expected)
    return Reading(dims, places, missing, unknown, {} if packed else wrong)


def _without_gaps(shapes: Mapping[str, tuple[int, ...]], table: Table, layout: str) -> dict[str, tuple[int, ...]]:
    """The shapes with each missing block as the first one that is there, so that widths and depth can be told."""
    filled = dict(shapes)
    for stems in (found for found in table.depth_stems.values() if layout in found):
        pattern = re.compile(re.escape(stems[layout]) + r"\.(\d+)\.(.*)")
        blocks: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            if match := pattern.match(name):
                blocks.setdefault(int(match[1]), {})[match[2]] = shape
        for index in set(range(max(blocks, default=-1))) - blocks.keys():
            filled |= {f"{stems[layout]}.{index}.{rest}": shape for rest, shape in blocks[min(blocks)].items()}
    return filled


def _pieces(tensors: list[Canonical], layout: str) -> dict[str, list[tuple[Canonical, Piece]]]:
    """Every name of a whole model in this layout, with what it is made of."""
    found: dict[str, list[tuple[Canonical, Piece]]] = {}
    for tensor in tensors:
        for piece in tensor.pieces.get(layout, ()):
            found.setdefault(piece.name, []).append((tensor, piece))
    return found


def _place(pieces: list[tuple[Canonical, Piece]]) -> Place:
    tensor, first = pieces[0]
    rows = sum(piece.rows for _, piece in pieces)
    part = None if not tensor.shape or rows == tensor.shape[0] else (first.start, first.start + rows)
    return Place(tensor.name, part, tensor.block or tensor.name.split(".")[0], tensor.component)
