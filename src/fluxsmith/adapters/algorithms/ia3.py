"""(IA)^3: rows or columns are scaled (Liu et al. 2022, arXiv:2205.05638).

LyCORIS   W' = W (1 + w)     w [n] or [1, n, 1, ...]: columns where `on_input` is 1, else rows
PEFT      W' = W l           l [1, in] columns, [out, 1] rows; of a convolution [1, n, 1, 1], for which `on_input` is in the config

PEFT's l of rows scales the bias, too: a module of the same factor for the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings, Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IA3"]


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    assert weight is not None
    shapes = {role: tuple(factor.shape) for role, factor in factors.items()}
    change = (factors["l"] - 1 if "l" in factors else factors["w"]).flatten()
    if _on_input(shapes, settings, rows.shape):
        return weight * change.reshape(1, -1, *[1] * (weight.dim() - 2))
    change = change if len(change) == rows.count else change[rows.start : rows.stop]
    return weight * change.reshape(-1, *[1] * (weight.dim() - 1))


def _on_input(shapes: Shapes, settings: Settings, weight: tuple[int, ...]) -> bool:
    if "on_input" in settings:
        return settings["on_input"] != 0
    shape = shapes["l"]
    return len(weight) > 1 and shape[0] == 1 and (len(shape) == 2 or prod(shape) != weight[0])


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    if len(shapes) > 1:
        raise ValueError("there are two scales, l and w")
    shape = shapes["l"] if "l" in shapes else shapes["w"]
    sides = [side for side in shape if side != 1]
    if len(sides) > 1 or not shape:
        raise ValueError(f"a scale for rows or columns is a vector, not {list(shape)}")
    if "l" in shapes and len(shape) == 2:
        return (None, shape[1]) if shape[0] == 1 else (shape[0], None)
    return (None, None)


def _suits(shapes: Shapes, settings: Settings, weight: tuple[int, ...]) -> bool:
    side = 1 if _on_input(shapes, settings, weight) else 0
    return len(weight) > side and prod(shapes["l"] if "l" in shapes else shapes["w"]) == weight[side]


def _by_rows(shapes: Shapes, settings: Settings) -> frozenset[str] | None:
    """A vector of rows is cut with them; one of columns is the same for all rows."""
    role = "l" if "l" in shapes else "w"
    if settings.get("on_input") or (role == "l" and len(shapes["l"]) == 2 and shapes["l"][0] == 1):
        return frozenset()
    return None if len(shapes[role]) > 1 and shapes[role][0] == 1 else frozenset({role})


IA3 = Algorithm(
    name="ia3",
    title="(IA)^3",
    paper="arXiv:2205.05638",
    stored={"lycoris": {"w": "weight"}, "peft": {"l": "ia3_l"}},
    numbers={"on_input": "on_input"},
    matches=lambda parts: ("weight" in parts) == ("on_input" in parts),
    delta=_delta,
    shape=_shape,
    reads=lambda shapes: "rows",
    suits=_suits,
    by_rows=_by_rows,
    turns_bias=lambda shapes, settings: "l" in shapes and not settings.get("on_input", shapes["l"][0] == 1),
)
