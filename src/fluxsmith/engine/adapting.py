"""The delta of an adapter on a tile: the rows that the tile covers, made from the factors and thrown away."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms import ALGORITHMS, Rows
from fluxsmith.adapters.tensors import check_finite
from fluxsmith.engine.plan import Adapt, Part

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.engine.tiles import Workspace

__all__ = ["check_factors", "delta_tile"]


def delta_tile(space: Workspace, step: Adapt, slot: int, start: int, stop: int, base: Tensor | None) -> Tensor:
    """Elements [start, stop) of an adapter's delta, flat, in the compute dtype; they are whole rows of the tensor.

    `base` has the same elements of the weights that it reads. Factors are read and multiplied in fp32 whatever the
    compute dtype is, so that every delta is rounded once.
    """
    import torch

    exact = space.exact()
    width = prod(step.shape[1:])
    first, last = start // width, stop // width
    rows = None if base is None else base.reshape(last - first, width).float()
    runs = [run for number, part in enumerate(step.parts) for run in _pieces(exact, part, (slot, number), first, last, rows)]
    if len(runs) == 1 and len(runs[0][1]) == last - first:
        delta = runs[0][1].mul_(step.weight)
    else:
        delta = torch.zeros((last - first, width), device=space.device.kind)
        for at, values in runs:
            delta[at - first : at - first + len(values)].add_(values, alpha=step.weight)
    if step.adapter not in space.touched and bool(delta.any()):
        space.touched.add(step.adapter)
    return delta.reshape(-1).to(space.compute)


def check_factors(space: Workspace, step: Adapt) -> None:
    """Raise IncompatibleError where a factor has values that are not finite, naming its file."""
    for part in step.parts:
        for role, view in part.factors.items():
            values = space.exact().load(("check", role), view, 0, view.count)
            check_finite(values, view, part.module, role, fix="train it again; --allow-nonfinite applies it as it is")


def _pieces(space: Workspace, part: Part, slot: tuple[int, int], first: int, last: int, base: Tensor | None) -> list[tuple[int, Tensor]]:
    """Runs of rows of a part's delta within rows [first, last) of the tensor, as (first row, [rows, width])."""
    if part.reads == "whole":
        return _whole(space, part, slot, base)
    found: list[tuple[int, Tensor]] = []
    for span in part.spans:
        low, high = max(span.start, first), min(span.start + span.rows, last)
        if low < high:
            at = span.at + low - span.start
            weight = None if base is None else base[low - first : high - first].reshape(-1, *part.shape[1:])
            found.append((low, _delta(space, part, slot, at, at + high - low, weight)))
    return found


def _whole(space: Workspace, part: Part, slot: tuple[int, int], base: Tensor | None) -> list[tuple[int, Tensor]]:
    """All rows of a delta that depends on all of the weight, which is gathered in the order of the module's rows."""
    import torch

    weight = None
    if base is not None:
        weight = torch.cat([base[span.start : span.start + span.rows] for span in sorted(part.spans, key=lambda span: span.at)])
        weight = weight.reshape(part.shape)
    delta = _delta(space, part, slot, 0, part.shape[0], weight)
    return [(span.start, delta[span.at : span.at + span.rows]) for span in part.spans]


def _delta(space: Workspace, part: Part, slot: tuple[int, int], start: int, stop: int, weight: Tensor | None) -> Tensor:
    """Rows [start, stop) of a module's own delta, [rows, width] in fp32."""
    algorithm, rows = ALGORITHMS[part.algorithm], Rows(start, stop, part.shape)
    ranges = algorithm.ranges(part.shapes, part.settings, rows)
    factors: dict[str, Tensor] = {}
    for role, view in part.factors.items():
        view = view.rows(*ranges[role]) if role in ranges else view
        factors[role] = space.load((*slot, role), view, 0, view.count).reshape(view.shape)
    made = algorithm.delta(factors, part.settings, rows, weight)
    return made.reshape(stop - start, -1)
