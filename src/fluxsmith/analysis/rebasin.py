"""One FLUX.1 checkpoint in the order of another: its units matched block by block, and the recipe that writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from fluxsmith.analysis.matching import Read, match_units, places_of
from fluxsmith.analysis.symmetries import flux1_units
from fluxsmith.engine.devices import Device
from fluxsmith.engine.inputs import bind_input
from fluxsmith.engine.merging import opener
from fluxsmith.engine.tiles import Files, Workspace
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts import Bound
from fluxsmith.methods import METHODS
from fluxsmith.recipes.expressions import Expression, model
from fluxsmith.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Orders", "match_checkpoints", "reordered"]


@dataclass
class Orders:
    """For every tensor that has units: the order of its rows, then of its columns. `moved` counts units that change
    places by where they are, `units` all of them."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    moved: dict[str, int] = field(default_factory=dict[str, int])
    units: int = 0


def match_checkpoints(reference: str, to: str, *, progress: Callable[[int, int, str], None] = lambda done, total, where: None) -> Orders:
    """The orders that bring `reference` nearest to `to`; a few tensors are in memory at a time.

    Raises IncompatibleError where these are no FLUX.1 transformers of one size.
    """
    import torch

    a, b = (_opened(text) for text in (reference, to))
    _check_alike(reference, a, to, b)
    dims = {**a.dims, "guidance": min(a.dims.get("guidance", 0), b.dims.get("guidance", 0))}
    files = Files()
    found = Orders()
    try:
        everything = flux1_units(dims)
        for number, units in enumerate(everything):
            progress(number, len(everything), units.where)
            order = match_units(units, _reader(a, files), _reader(b, files))
            found.units += units.count
            found.moved[units.where] = int((order != torch.arange(units.count)).sum())
            for (place, columns), numbers in places_of(units, order).items():
                shape = a.spec[place.name].shape
                whole = found.tensors.setdefault(place.name, torch.cat([torch.arange(size) for size in shape[:2]]).float())
                at = place.start + (shape[0] if columns else 0)
                whole[at : at + len(numbers)] = numbers.float()
    finally:
        files.close()
    return found


def reordered(reference: str, orders: str | Mapping[str, Tensor]) -> Recipe:
    """The recipe of a checkpoint in new orders, which are in a file (see models/statistics_file.py) or in memory."""
    from fluxsmith.recipes.expressions import state_dict

    node: Expression = (
        model(orders, name="orders", holds="param") if isinstance(orders, str) else state_dict(dict(orders), name="orders", holds="param")
    )
    return Recipe(METHODS["reindex"](model(reference, name="model"), node), missing="skip", title="rebasin")


def _opened(reference: str) -> Bound:
    node = model(reference, components=("transformer",))
    return bind_input(node, Recipe(node), opener(download=True))


def _reader(bound: Bound, files: Files) -> Read:
    """Reads canonical tensors in fp32; the last few are kept, as neighbouring units share them."""
    space = Workspace(files, Device("cpu"), "F32", 0)

    @lru_cache(maxsize=4)
    def read(name: str) -> Tensor:
        view = bound.views[name]
        return space.load("tensor", view, 0, view.count).clone().reshape(view.shape)

    return read


def _check_alike(one: str, a: Bound, two: str, b: Bound) -> None:
    for reference, bound in ((one, a), (two, b)):
        if bound.family != "flux1":
            raise IncompatibleError(
                "model.wrong-family", f"{reference} is {bound.family}: the symmetries of FLUX.1 alone are known", fix="give FLUX.1 models"
            )
    sizes = ("H", "M", "D", "double", "single", "T", "vec", "ctx", "in", "out")
    unlike = [symbol for symbol in sizes if a.dims.get(symbol) != b.dims.get(symbol)]
    if unlike:
        raise IncompatibleError(
            "model.different-size",
            f"{one} and {two} are not of one size",
            facts={symbol: f"{a.dims.get(symbol)} and {b.dims.get(symbol)}" for symbol in unlike},
            fix="give models of one shape",
        )
