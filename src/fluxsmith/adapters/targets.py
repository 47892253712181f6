"""Where a module's name leads: the tensors and rows of a model that a name in an adapter means.

A family's table names every tensor in every layout. An adapter's module is one of these names without its suffix,
dotted (`double_blocks.0.img_attn.qkv`) or joined (`double_blocks_0_img_attn_qkv`), or a named part of one (its q).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fluxsmith.adapters.module import Span, Target
from fluxsmith.layouts.binding import solve_dims, symbols_of
from fluxsmith.layouts.table import Canonical, Table

__all__ = ["Names", "Place", "Targets", "solve_partial", "superset"]

_WEIGHTS = ("weight", "scale")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor by its name in a layout: `stem` is the name without prefix and suffix, `suffix` the last word (weight or
    bias; a norm's scale is its weight). `parts` are the first and last of its named parts (segments) that are meant,
    None for all of it."""

    component: str
    layout: str
    stem: str
    suffix: str = "weight"
    parts: tuple[int, int] | None = None


@dataclass
class Names:
    """The stems that a layout of one component has: dotted -> itself, joined -> dotted."""

    dotted: dict[str, str] = field(default_factory=dict[str, str])
    joined: dict[str, str] = field(default_factory=dict[str, str])


class Targets:
    """The tensors of a model by all of their names.

    Made of canonical tensors: those of a checkpoint (`Bound.spec`), or those that a table has for given dims. `prefixes`
    is what a component's names begin with in a layout of the table, which adapters leave out.
    """

    def __init__(self, tensors: Iterable[Canonical], prefixes: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None) -> None:
        self._prefixes = prefixes or {}
        self._names: dict[tuple[str, str], Names] = {}
        self._tensors: dict[tuple[str, str, str, str], list[Canonical]] = {}
        for tensor in tensors:
            for layout, pieces in tensor.pieces.items():
                for name in dict.fromkeys(piece.name for piece in pieces):
                    self._add(tensor, layout, name)

    def _add(self, tensor: Canonical, layout: str, name: str) -> None:
        stem, _, suffix = name.removeprefix(self._prefix(tensor.component, layout)).rpartition(".")
        if not stem:  # a parameter of its own, such as a position embedding
            stem, suffix = suffix, "weight"
        names = self._names.setdefault((tensor.component, layout), Names())
        # Files differ in where a component's names begin: a text encoder's with or without `text_model.`
        for before in self._prefixes.get(tensor.component, {}).get(layout, ("",)) or ("",):
            if name.startswith(before):
                alias = name.removeprefix(before).removesuffix(f".{suffix}")
                names.dotted.setdefault(alias, stem)
                names.joined.setdefault(alias.replace(".", "_"), stem)
        self._tensors.setdefault((tensor.component, layout, stem, _kind(suffix)), []).append(tensor)

    def _prefix(self, component: str, layout: str) -> str:
        return next(iter(self._prefixes.get(component, {}).get(layout, ())), "")

    @property
    def components(self) -> list[str]:
        """The components that there are."""
        return list(dict.fromkeys(component for component, _ in self._names))

    def layouts(self, component: str) -> list[str]:
        """The layouts that have names for a component."""
        return [layout for known, layout in self._names if known == component]

    def stem(self, component: str, layout: str, name: str, *, joined: bool = False) -> str | None:
        """The dotted stem that a name means, None where there is none such."""
        names = self._names.get((component, layout))
        if names is None:
            return None
        return names.joined.get(name) if joined else names.dotted.get(name)

    def target(self, place: Place) -> Target | None:
        """The rows of the canonical tensor that a place means, None where the model has no such tensor (or part)."""
        found = self._tensors.get((place.component, place.layout, place.stem, place.suffix))
        if not found:
            return None
        tensor = found[0]  # one stored tensor of these tables never holds rows of two canonical ones
        stored = self._stored(tensor, place)
        pieces = sorted((piece for piece in tensor.pieces[place.layout] if piece.name == stored), key=lambda piece: piece.at)
        if pieces[0].transposed:  # its rows are columns of ours, which spans of rows cannot say
            return None
        spans = [Span(piece.at, piece.start, piece.rows) for piece in pieces]
        trailing = tensor.shape[1:] if pieces[0].trailing is None else pieces[0].trailing
        if place.parts is not None:
            if place.parts[1] >= len(tensor.segments) or len(pieces) != 1:
                return None
            first, last = tensor.segments[place.parts[0]].start, tensor.segments[place.parts[1]].stop
            spans = [Span(0, first, last - first)]
        shape = (sum(span.rows for span in spans), *trailing) if tensor.shape else ()
        return Target(tensor.name, place.component, place.layout, stored, shape, tuple(spans), place.parts)

    def _stored(self, tensor: Canonical, place: Place) -> str:
        before = self._prefix(place.component, place.layout)
        for piece in tensor.pieces[place.layout]:
            stem, _, suffix = piece.name.removeprefix(before).rpartition(".")
            if (stem or suffix) == place.stem and (not stem or _kind(suffix) == place.suffix):
                return piece.name
        raise AssertionError(place)


def _kind(suffix: str) -> str:
    return "weight" if suffix in _WEIGHTS else suffix


def superset(table: Table, names: Iterable[str]) -> list[Canonical]:
    """Every tensor that a model of the family could have, all widths 1, with as many blocks as the names ask for.

    Only the names of these tensors mean something.
    """
    largest = max((int(number) for name in names for number in re.findall(r"(?<![a-zA-Z])\d+", name)), default=0)
    dims = {symbol: 1 for row in table.rows for symbol in symbols_of(table, row)}
    # One block more than is named: what the last of them lacks, all others have.
    depths = dict.fromkeys(table.depth_stems, min(largest, 1000) + 2)
    counted = {symbol: depths[table.depth_of(row) or ""] for row in table.rows if (symbol := table.counted(row))}
    return table.expand(dims | depths | dict.fromkeys(table.flags, 1) | counted, table.components)


def solve_partial(table: Table, layout: str, shapes: Mapping[str, tuple[int, ...]], reference: str) -> dict[str, int]:
    """Dims of a model from the tensors that an adapter changes (stored name -> shape): depths are those that it reaches.

    A symbol of which the adapter says nothing is 0.
    """
    return dict(solve_dims(table, layout, shapes, reference, partial=True))
