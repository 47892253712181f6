"""The way back: canonical tensors written in any layout, as placements of contiguous rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fluxsmith.layouts.table import Canonical, Table

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
    """One tensor of the output with the canonical elements that fill it."""

    name: str
    shape: tuple[int, ...]
    placements: tuple[Placement, ...]


def emit(tensors: Sequence[Canonical], layout: str, table: Table | None) -> list[OutputTensor]:
    """The tensors of an output in `layout` (bfl, diffusers, comfy, structural), in that layout's own order."""
    prefix = COMFY_PREFIX if layout == "comfy" else ""
    naming = "bfl" if layout == "comfy" else layout
    collected: dict[str, list[Placement]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        width = prod(tensor.shape[1:])
        for piece in tensor.pieces[naming]:
            name = prefix + piece.name
            placement = Placement(tensor.name, piece.start * width, piece.at * width, piece.rows * width)
            collected.setdefault(name, []).append(placement)
            rows = shapes.get(name, (0,))[0] + piece.rows
            shapes[name] = (rows, *tensor.shape[1:]) if tensor.shape else ()
    order = _order(table, naming, list(collected), prefix)
    return [OutputTensor(name, shapes[name], tuple(collected[name])) for name in order]


def _order(table: Table | None, layout: str, names: list[str], prefix: str) -> list[str]:
    """Names in the order of the layout's own state dict where the table gives one, else as they came."""
    templates = table.order.get(layout) if table else None
    if table is None or templates is None:
        return names
    rank = {template: i for i, template in enumerate(templates)}
    stems: Mapping[str, str] = {stems[layout]: symbol for symbol, stems in table.depth_stems.items()}

    def key(name: str) -> tuple[int, int, int, str]:
        stem, _, suffix = name.removeprefix(prefix).rpartition(".")
        head, _, rest = stem.partition(".")
        index, _, tail = rest.partition(".")
        symbol = stems.get(head)
        if symbol is None:
            return rank[stem], 0, 0, "" if suffix == "weight" else suffix
        template = f"{head}.{{{symbol}}}.{tail}"
        first = min(i for t, i in rank.items() if t.startswith(f"{head}."))
        return first, int(index), rank[template], "" if suffix == "weight" else suffix

    return sorted(names, key=key)
