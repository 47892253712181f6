"""BOFT: rotations in butterfly order, block by block in several steps (Liu et al. 2024, arXiv:2311.06243).

LyCORIS   W' = rescale * M_m-1 ... M_0 W                     rows; blocks [m, n, b, b], rescale [out, 1, ...]
          M_i = S_i^-1 blockdiag(R_i) S_i, R = (I + Q)(I - Q)^-1, Q = B - B^T, its norm at most constraint * out
PEFT      W' = s * W M_0^T ... M_m-1^T                       columns (in * kernel); blocks [m, n, b, b], s [out, 1] or [1, out]
          M_i = P_i blockdiag(R_i) P_i^T, R = (I - Q)(I + Q)^-1, Q = (B - B^T) / 2

S_i brings together what is 2^i b/2 apart: position (c, g, k) goes to (c, k, g), g of 2, k of 2^i b/2.
P_i collects every other run of b/2: within 2^i b, position (h, e, r) goes to (e, h, r), h of 2^i, e of 2, r of b/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Reads, Rows, Settings, Shapes
from fluxsmith.adapters.algorithms.cayley import cayley, constrained

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BOFT"]


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    assert weight is not None
    if "butterfly" in factors:
        return _rotate_columns(factors, rows, weight)
    return _rotate_rows(factors, settings, weight)[rows.start : rows.stop]


def _rotate_rows(factors: Mapping[str, Tensor], settings: Settings, weight: Tensor) -> Tensor:
    blocks = factors["blocks"]
    steps, _, width, _ = blocks.shape
    out = weight.shape[0]
    rotation = cayley(constrained(blocks - blocks.transpose(2, 3), settings.get("constraint", 0.0) * out))
    turned = weight.reshape(out, -1)
    for step in range(steps):
        apart = 2**step * width // 2
        turned = turned.unflatten(0, (-1, 2, apart)).transpose(1, 2).reshape(-1, width, turned.shape[1])
        turned = (rotation[step] @ turned).reshape(-1, apart, 2, turned.shape[2]).transpose(1, 2).reshape(out, -1)
    if "rescale" in factors:
        turned.mul_(factors["rescale"].reshape(-1, 1))
    return turned.reshape(weight.shape).sub_(weight)


def _rotate_columns(factors: Mapping[str, Tensor], rows: Rows, weight: Tensor) -> Tensor:
    blocks = factors["butterfly"]
    steps, _, width, _ = blocks.shape
    rotation = cayley((blocks.transpose(2, 3) - blocks) / 2)  # of -Q
    turned = weight.reshape(weight.shape[0], -1)
    for step in range(steps):
        runs, half = 2**step, width // 2 or 1
        spread = (-1, 2, runs, half) if steps > 1 else (-1, 1, 1, width)
        shuffled = turned.unflatten(1, spread).transpose(2, 3).reshape(len(turned), -1, width)
        rotated = (shuffled.transpose(0, 1) @ rotation[step].transpose(1, 2)).transpose(0, 1)
        back = (-1, spread[2], spread[1], spread[3])
        turned = rotated.reshape(len(turned), -1).unflatten(1, back).transpose(2, 3).reshape(len(turned), -1)
    if "scales" in factors:
        turned.mul_(_of_rows(factors["scales"], rows).reshape(-1, 1))
    return turned.reshape(weight.shape).sub_(weight)


def _of_rows(scales: Tensor, rows: Rows) -> Tensor:
    return scales if scales.numel() == rows.count else scales.flatten()[rows.start : rows.stop]


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    if "butterfly" in shapes and len(shapes.keys() - {"scales"}) > 1:
        raise ValueError("the blocks of two libraries are there")
    blocks = shapes["butterfly"] if "butterfly" in shapes else shapes["blocks"]
    if len(blocks) != 4 or blocks[2] != blocks[3]:
        raise ValueError(f"blocks {list(blocks)} are no squares in steps")
    steps, count, width, _ = blocks
    if steps > 1 and (width % 2 or count * 2 % 2**steps):
        raise ValueError(f"{count} blocks of {width} are no butterfly of {steps} steps")
    if "butterfly" in shapes:
        return (prod(shapes["scales"]) if "scales" in shapes else None, count * width)
    if prod(shapes.get("rescale", (count * width,))) != count * width:
        raise ValueError(f"rescale {list(shapes['rescale'])} does not go with blocks {list(blocks)}")
    return (count * width, None)


def _reads(shapes: Shapes) -> Reads:
    return "rows" if "butterfly" in shapes else "whole"


def _by_rows(shapes: Shapes, settings: Settings) -> frozenset[str] | None:
    cut = "scales" not in shapes or shapes["scales"][0] > 1  # those of a convolution are one row
    return frozenset({"scales"} & shapes.keys()) if "butterfly" in shapes and cut else None


BOFT = Algorithm(
    name="boft",
    title="BOFT",
    paper="arXiv:2311.06243",
    stored={"lycoris": {"blocks": "oft_blocks", "rescale": "rescale"}, "peft": {"butterfly": "boft_R", "scales": "boft_s"}},
    numbers={"alpha": "constraint"},
    matches=lambda parts: "oft_blocks" not in parts or len(parts["oft_blocks"]) == 4,
    delta=_delta,
    shape=_shape,
    reads=_reads,
    by_rows=_by_rows,
)
