"""The delta of an adapter on a tile: the rows that the tile covers, made from the factors and thrown away."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms import ALGORITHMS, Rows
from fluxsmith.engine.plan import Adapt, Part
from fluxsmith.errors import IncompatibleError

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
    delta: Tensor | None = None
    for number, part in enumerate(step.parts):
        if part.covers(first, last) and delta is None:
            made = _rows(exact, part, (slot, number), first, last, rows)
            delta = made.mul_(step.weight) if step.weight != 1 else made
            continue
        if delta is None:
            delta = torch.zeros((last - first, width), device=space.device.kind)
        for at, values in _pieces(exact, part, (slot, number), first, last, rows):
            delta[at - first : at - first + len(values)].add_(values, alpha=step.weight)
    if delta is None:
        delta = torch.zeros((last - first, width), device=space.device.kind)
    if step.adapter not in space.touched and bool(delta.any()):
        space.touched.add(step.adapter)
    return delta.reshape(-1).to(space.compute)


def check_factors(space: Workspace, step: Adapt) -> None:
    """Raise IncompatibleError where a factor has values that are not finite, naming its file."""
    for part in step.parts:
        for role, view in part.factors.items():
            values = space.exact().load(("check", role), view, 0, view.count)
            bad = int((~values.isfinite()).count_nonzero())
            if bad:
                raise IncompatibleError(
                    "values.not-finite",
                    f"{step.adapter} has {bad} {'value that is' if bad == 1 else 'values that are'} not finite in `{part.module}`",
                    facts={"file": view.extents[0].file, "module": part.module, "factor": role},
                    fix="train it again; --allow-nonfinite applies it as it is",
                )


def _rows(space: Workspace, part: Part, slot: tuple[int, int], first: int, last: int, base: Tensor | None) -> Tensor:
    """Rows of a part that covers all of them at one place."""
    (_, values), *_ = _pieces(space, part, slot, first, last, base)
    return values


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
    ranges = algorithm.ranges({role: view.shape for role, view in part.factors.items()}, part.settings, rows)
    factors: dict[str, Tensor] = {}
    for role, view in part.factors.items():
        view = view.rows(*ranges[role]) if role in ranges else view
        factors[role] = space.load((*slot, role), view, 0, view.count).reshape(view.shape)
    made = algorithm.delta(factors, part.settings, rows, weight)
    return made.reshape(stop - start, -1)
