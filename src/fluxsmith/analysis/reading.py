"""FLUX.1 read as far as it goes: which stored key is which canonical tensor, and what a whole model has besides.

Merging refuses an incomplete or unusual file; here the same table says what there is of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.layouts.binding import solve_dims
from fluxsmith.layouts.detection import Candidate
from fluxsmith.layouts.table import Canonical, Dims, Piece, Table

__all__ = ["Place", "Reading", "read_as"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored tensor stands in the model: a canonical name, rows of it where it is only a part, and a block."""

    name: str
    rows: tuple[int, int] | None
    block: str

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
    table, layout, prefix = candidate.table, candidate.layout, candidate.prefix
    stored = {_name(key[len(prefix) :], table, layout): key for key in checkpoint.tensors if key.startswith(prefix) and key not in aside}
    shapes = {name: checkpoint.tensors[key].shape if key not in packed else () for name, key in stored.items()}
    dims = solve_dims(table, layout, _without_gaps(shapes, table, layout), checkpoint.reference)
    expected = _pieces(table, layout, dims)
    places = {stored[name]: _place(pieces) for name, pieces in expected.items() if name in stored}
    wrong = {
        stored[name]: (shapes[name], shape)
        for name, shape in ((name, _shape(pieces)) for name, pieces in expected.items())
        if name in stored and stored[name] not in packed and shapes[name] != shape
    }
    missing = tuple(prefix + name for name in expected if name not in stored)
    unknown = tuple(key for name, key in stored.items() if name not in expected)
    return Reading(dims, places, missing, unknown, {} if packed else wrong)


def _name(name: str, table: Table, layout: str) -> str:
    """The table's name for one of its aliases."""
    aliases = table.aliases.items() if layout == "bfl" else ()
    return next((name.removesuffix(alias) + known for alias, known in aliases if name.endswith(alias)), name)


def _without_gaps(shapes: Mapping[str, tuple[int, ...]], table: Table, layout: str) -> dict[str, tuple[int, ...]]:
    """The shapes with each missing block as the first one that is there, so that widths and depth can be told."""
    filled = dict(shapes)
    for stems in table.depth_stems.values():
        pattern = re.compile(re.escape(stems[layout]) + r"\.(\d+)\.(.*)")
        blocks: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            if match := pattern.match(name):
                blocks.setdefault(int(match[1]), {})[match[2]] = shape
        for index in set(range(max(blocks, default=-1))) - blocks.keys():
            filled |= {f"{stems[layout]}.{index}.{rest}": shape for rest, shape in blocks[min(blocks)].items()}
    return filled


def _pieces(table: Table, layout: str, dims: Dims) -> dict[str, list[tuple[Canonical, Piece]]]:
    """Every name of a whole model in this layout, with what it is made of."""
    found: dict[str, list[tuple[Canonical, Piece]]] = {}
    for tensor in table.expand(dims):
        for piece in tensor.pieces[layout]:
            found.setdefault(piece.name, []).append((tensor, piece))
    return found


def _shape(pieces: list[tuple[Canonical, Piece]]) -> tuple[int, ...]:
    return (sum(piece.rows for _, piece in pieces), *pieces[0][0].shape[1:])


def _place(pieces: list[tuple[Canonical, Piece]]) -> Place:
    tensor, first = pieces[0]
    rows = sum(piece.rows for _, piece in pieces)
    part = None if rows == tensor.shape[0] else (first.start, first.start + rows)
    return Place(tensor.name, part, tensor.block or tensor.name.split(".")[0])
