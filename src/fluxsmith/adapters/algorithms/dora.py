"""DoRA: a weight's direction and its magnitude apart (Liu et al. 2024, arXiv:2402.09353), over any delta that is added.

V = W + dW,  W' = m * V / ||V||,  delta = W' - W

The norm is that of rows, ||V[o]||, or of columns, ||V[:, i]|| over rows and kernel (OneTrainer's and LyCORIS' older files).
`dora_scale` says by its shape which: [out, 1, ...] or [out] rows, [1, in, ...] columns. `magnitude` (PEFT, ai-toolkit) is always
one of rows: PEFT's convolutions store it as [1, out, 1, 1]. Columns need the whole weight, and the layout in which it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Reads, Rows, Settings, Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decomposed"]

_ROLES = ("magnitude", "dora_scale")
_ALIASES = {"lora_magnitude_vector.weight": "magnitude", "magnitude": "magnitude"}

_ROWS = 256  # of which columns' squares are added at a time: torch's own norm of columns is several times slower


def decomposed(algorithm: Algorithm) -> Algorithm:
    """The algorithm with a magnitude where a module has one; without, it is what it was."""

    def delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
        role = next((role for role in _ROLES if role in factors), None)
        if role is None:
            return algorithm.delta(factors, settings, rows, weight)
        assert weight is not None
        if _is_columns(role, tuple(factors[role].shape)):
            every = Rows(0, rows.shape[0], rows.shape)
            found = _by_columns(algorithm.delta(factors, settings, every, None), factors[role], weight)
            return found[rows.start : rows.stop]
        return _by_rows(algorithm.delta(factors, settings, rows, None), _of_rows(factors[role].flatten(), rows), weight)

    def reads(shapes: Shapes) -> Reads:
        role = _role(shapes)
        return algorithm.reads(shapes) if role is None else "whole" if _is_columns(role, shapes[role]) else "rows"

    def by_rows(shapes: Shapes, settings: Settings) -> frozenset[str] | None:
        role, found = _role(shapes), algorithm.by_rows(shapes, settings)
        if role is None or found is None:
            return found
        return None if len(shapes[role]) > 1 and shapes[role][0] == 1 else found | {role}

    def tiles(shapes: Shapes, rows: Rows) -> Mapping[str, tuple[int, int]]:
        return {} if reads(shapes) == "whole" else algorithm.ranges(shapes, {}, rows)

    peft = {"magnitude": "lora_magnitude_vector"} if algorithm.name == "lora" else {}
    extra = {"lycoris": {"dora_scale": "dora_scale"}, "peft": peft}
    return replace(
        algorithm,
        title=algorithm.title + ", also with DoRA",
        stored={words: {**names, **extra[words]} for words, names in algorithm.stored.items()},
        aliases={**algorithm.aliases, **(_ALIASES if peft else {})},
        delta=delta,
        shape=lambda shapes: _shape(algorithm, shapes),
        reads=reads,
        by_rows=by_rows,
        tiles=tiles,
    )


def _role(shapes: Shapes) -> str | None:
    return next((role for role in _ROLES if role in shapes), None)


def _is_columns(role: str, shape: tuple[int, ...]) -> bool:
    return role == "dora_scale" and len(shape) > 1 and shape[0] == 1 and prod(shape) > 1


def _of_rows(vector: Tensor, rows: Rows) -> Tensor:
    """The rows' part of a vector, which may have been cut already."""
    return vector if len(vector) == rows.count else vector[rows.start : rows.stop]


def _by_rows(delta: Tensor, magnitude: Tensor, weight: Tensor) -> Tensor:
    import torch

    tiny = torch.finfo(torch.float32).tiny  # a row that is all zero stays zero
    turned = delta.add_(weight)
    factor = magnitude / turned.flatten(1).norm(dim=1).clamp_min_(tiny)
    return turned.mul_(factor.reshape(-1, *[1] * (turned.dim() - 1))).sub_(weight)


def _by_columns(delta: Tensor, magnitude: Tensor, weight: Tensor) -> Tensor:
    import torch

    turned = delta.add_(weight)
    columns = turned.reshape(turned.shape[0], magnitude.numel(), -1)
    squares = torch.zeros_like(columns[0])
    for some in columns.split(_ROWS):
        squares += some.square().sum(0)
    norms = squares.sum(1).sqrt_().clamp_min_(torch.finfo(torch.float32).tiny)
    return columns.mul_((magnitude.flatten() / norms)[:, None]).reshape(turned.shape).sub_(weight)


def _shape(algorithm: Algorithm, shapes: Shapes) -> tuple[int | None, ...]:
    found = algorithm.shape({role: shape for role, shape in shapes.items() if role not in _ROLES})
    roles = [role for role in _ROLES if role in shapes]
    if len(roles) > 1:
        raise ValueError(f"there are two magnitudes, {' and '.join(roles)}")
    for role in roles:
        shape = shapes[role]
        columns = _is_columns(role, shape)
        side = found[1] if columns else found[0]
        if side is not None and prod(shape) != side and not (columns and len(shape) > 2 and side % prod(shape) == 0):
            raise ValueError(f"{role} {list(shape)} is not one of the {'columns' if columns else 'rows'} of {list(found)}")
    return found
