"""OFT: blocks of rows, or of columns, are rotated (Qiu et al. 2023, arXiv:2306.07280).

LyCORIS, kohya   W'[block k] = R_k^T W[block k] * rescale       rows; blocks [n, b, b], rescale [out, 1, ...]
                 R = (I + Q)(I - Q)^-1, Q = B - B^T, its norm at most constraint * out
PEFT             W'[:, block k] = W[:, block k] R_k^T           columns (in * kernel); packed [n, b (b - 1) / 2],
                 one block for all where n is 1
                 R of Q by the Cayley-Neumann series (`neumann_terms`), or exactly, where it is (I - Q)(I + Q)^-1:
                 the opposite sign
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Reads, Rows, Settings, Shapes
from fluxsmith.adapters.algorithms.cayley import block_width, cayley, constrained, neumann, project, skew_of_packed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NEUMANN_TERMS", "OFT"]

#: Terms of PEFT's series where its config does not say.
NEUMANN_TERMS = 5


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    assert weight is not None
    if "packed" in factors:
        return _rotate_columns(factors["packed"], settings, weight)
    return _rotate_rows(factors, settings, rows, weight)


def _rotate_rows(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor) -> Tensor:
    blocks = factors["blocks"]
    generator = constrained(blocks - blocks.transpose(1, 2), settings.get("constraint", 0.0) * rows.shape[0])
    height = blocks.shape[1]
    first, last = rows.start // height, -(-rows.stop // height)
    some = weight[first * height : last * height].reshape(last - first, height, -1)
    turned = (cayley(generator[first:last]).transpose(1, 2) @ some).reshape(-1, *rows.shape[1:])
    turned = turned[rows.start - first * height : rows.stop - first * height]
    if "rescale" in factors:
        turned.mul_(factors["rescale"].flatten()[rows.start : rows.stop].reshape(-1, *[1] * (turned.dim() - 1)))
    return turned.sub_(weight[rows.start : rows.stop])


def _rotate_columns(packed: Tensor, settings: Settings, weight: Tensor) -> Tensor:
    generator = project(skew_of_packed(packed), settings.get("coft", 0.0))
    terms = int(settings.get("neumann_terms", NEUMANN_TERMS))
    rotation = neumann(generator, terms) if terms else cayley(-generator)
    columns = weight.reshape(weight.shape[0], -1, generator.shape[1])  # [rows, n, b]
    turned = columns.transpose(0, 1) @ rotation.transpose(1, 2)  # [n, rows, b]; one block serves all where n is 1
    return turned.transpose(0, 1).reshape(weight.shape).sub_(weight)


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    if "packed" in shapes:
        if len(shapes["packed"]) != 2 or "rescale" in shapes or "blocks" in shapes:
            raise ValueError(f"packed blocks {list(shapes['packed'])} are no matrix, or not alone")
        count, width = shapes["packed"][0], block_width(shapes["packed"][1])
        return (None, count * width if count > 1 else None)
    blocks = shapes["blocks"]
    if len(blocks) != 3 or blocks[1] != blocks[2]:
        raise ValueError(f"blocks {list(blocks)} are no squares")
    out = blocks[0] * blocks[1]
    if prod(shapes.get("rescale", (out,))) != out:
        raise ValueError(f"rescale {list(shapes['rescale'])} does not go with blocks {list(blocks)}")
    return (out, None)


def _suits(shapes: Shapes, settings: Settings, weight: tuple[int, ...]) -> bool:
    """One block for all columns does not tell how many there are."""
    return "packed" not in shapes or prod(weight[1:]) % block_width(shapes["packed"][1]) == 0


def _reads(shapes: Shapes) -> Reads:
    return "rows" if "packed" in shapes else "whole"


OFT = Algorithm(
    name="oft",
    title="OFT",
    paper="arXiv:2306.07280",
    stored={"lycoris": {"blocks": "oft_blocks", "rescale": "rescale"}, "peft": {"packed": "oft_R.weight"}},
    numbers={"alpha": "constraint"},
    matches=lambda parts: len(parts.get("oft_blocks", (0, 0, 0))) == 3,
    delta=_delta,
    shape=_shape,
    suits=_suits,
    reads=_reads,
)
