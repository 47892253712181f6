"""The way back: canonical tensors written in any layout, as placements of contiguous rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from fluxsmith.layouts.table import Canonical, Table, stored_shapes

__all__ = ["COMFY_PREFIX", "OutputTensor", "Placement", "emit"]

COMFY_PREFIX = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class Placement:
    """Elements [start, start + count) of canonical tensor `source` go to element `at` of an output tensor."""

    source: str
    start: int
    at: int
    count: int


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output with the canonical elements that fill it.

    `transposed` says that they are those of one canonical matrix, column by column.
    """

    name: str
    shape: tuple[int, ...]
    placements: tuple[Placement, ...]
    transposed: bool = False


def emit(tensors: Sequence[Canonical], layout: str, table: Table | None) -> list[OutputTensor]:
    """The tensors of an output in `layout` (comfy is bfl after a prefix), in that layout's own order.

    Tensors that the layout does not have are left out.
    """
    placed = table.comfy_only if table else ()
    naming = "bfl" if layout == "comfy" else layout
    collected: dict[str, list[Placement]] = {}
    turned: set[str] = set()
    prefixes: dict[str, str] = {}
    for tensor in tensors:
        width = prod(tensor.shape[1:])
        for piece in tensor.pieces.get(naming, ()):
            placement = Placement(tensor.name, piece.start * width, piece.at * width, piece.rows * width)
            collected.setdefault(piece.name, []).append(placement)
            prefixes[piece.name] = COMFY_PREFIX if layout == "comfy" and tensor.component not in placed else ""
            if piece.transposed:
                turned.add(piece.name)
    shapes = stored_shapes(tensors, naming)
    order = _order(table, naming, list(collected))
    return [OutputTensor(prefixes[name] + name, shapes[name], tuple(collected[name]), name in turned) for name in order]


def _order(table: Table | None, layout: str, names: list[str]) -> list[str]:
    """Names in the order of the layout's own state dict where the table gives one, else as they came.

    Neighbouring templates of one list of blocks stand together: first all of block 0, then all of block 1.
    """
    templates = table.order.get(layout) if table else None
    if table is None or templates is None:
        return names
    rank = {re.sub(r"{\w+}", "#", template): i for i, template in enumerate(templates)}
    heads = {template.split("#")[0]: i for template, i in reversed(rank.items()) if "#" in template}

    def key(name: str) -> tuple[int, int, int, str]:
        stem, _, suffix = name.rpartition(".")
        head = next((head for head in heads if stem.startswith(head)), None)
        last = "" if suffix == "weight" else suffix
        if head is None:
            return rank[stem], 0, 0, last
        index, _, tail = stem[len(head) :].partition(".")
        return heads[head], int(index), rank[f"{head}#.{tail}" if tail else f"{head}#"], last

    return sorted(names, key=key)
