"""LoKr: a Kronecker product (KronA, Edalati et al. 2022, arXiv:2212.10650; LyCORIS, arXiv:2309.14859).

dW = scale * kron(w1, w2)      w1 [o1, i1], w2 [o2, i2, *kernel]: dW [o1 * o2, i1 * i2, *kernel]
     dW[o * o2 + p, i * i2 + q, k...] = scale * w1[o, i] * w2[p, q, k...]
w1 = w1_a @ w1_b,  w2 = w2_a @ w2_b (w2_b with the kernel folded in), or with a Tucker core t2 [r, r, *kernel]:
w2[p, q, k...] = sum_{s, t} t2[s, t, k...] w2_a[s, p] w2_b[t, q]     w2_a [r, o2], w2_b [r, i2]

The scale is alpha / r; where both are whole matrices it is 1, and whatever alpha was written (10000, infinity) means
nothing. PEFT divides by r even then: its dialect says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings, Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOKR"]

_WORDS = {
    "w1": "lokr_w1", "w1_a": "lokr_w1_a", "w1_b": "lokr_w1_b",
    "w2": "lokr_w2", "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b", "t2": "lokr_t2",
}  # fmt: skip


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    """Row o * o2 + p is the outer product of w1[o] and w2[p]: rows of both are gathered, the whole product is never made."""
    import torch

    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    w2 = _second(factors).flatten(1)
    height = rows.shape[0] // w1.shape[0]
    row = torch.arange(rows.start, rows.stop, device=w1.device)
    block = row // height
    within = row - block * height
    if len(w2) < height:  # only the rows that are needed were read
        within -= int(within[0])
    left = w1[block].mul_(settings["scale"])
    return (left[:, :, None] * w2[within][:, None, :]).reshape(rows.count, *rows.shape[1:])


def _second(factors: Mapping[str, Tensor]) -> Tensor:
    import torch

    if "w2" in factors:
        return factors["w2"]
    if "t2" in factors:
        return torch.einsum("st...,sp,tq->pq...", factors["t2"], factors["w2_a"], factors["w2_b"])
    return factors["w2_a"] @ factors["w2_b"].flatten(1)


def _tiles(shapes: Shapes, rows: Rows) -> Mapping[str, tuple[int, int]]:
    """The rows of w2 where they all stand beside one row of w1."""
    role = "w2" if "w2" in shapes else "w2_a"
    if "t2" in shapes:
        return {}
    height = shapes[role][0]
    first = rows.start % height
    return {role: (first, first + rows.count)} if first + rows.count <= height else {}


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    first, second = _first_shape(shapes), _second_shape(shapes)
    return (first[0] * second[0], first[1] * second[1], *second[2:])


def _first_shape(shapes: Shapes) -> tuple[int, ...]:
    if "w1" not in shapes:
        return _product(shapes, "w1_a", "w1_b")
    if "w1_a" in shapes or "w1_b" in shapes:
        raise ValueError("w1 is there both whole and as a product")
    if len(shapes["w1"]) != 2:
        raise ValueError(f"w1 {list(shapes['w1'])} is no matrix")
    return shapes["w1"]


def _second_shape(shapes: Shapes) -> tuple[int, ...]:
    core = shapes.get("t2")
    if "w2" in shapes:
        if core is not None or "w2_a" in shapes or "w2_b" in shapes:
            raise ValueError("w2 is there both whole and as a product")
        if len(shapes["w2"]) < 2:
            raise ValueError(f"w2 {list(shapes['w2'])} is no matrix")
        return shapes["w2"]
    if core is None:
        return _product(shapes, "w2_a", "w2_b")
    a, b = shapes["w2_a"], shapes["w2_b"]
    if len(a) != 2 or len(b) != 2 or core[:2] != (a[0], b[0]):
        raise ValueError(f"t2 {list(core)}, w2_a {list(a)} and w2_b {list(b)} have different ranks")
    return (a[1], b[1], *core[2:])


def _product(shapes: Shapes, left: str, right: str) -> tuple[int, ...]:
    a, b = shapes[left], shapes[right]
    if len(a) != 2 or len(b) < 2 or a[1] != b[0]:
        raise ValueError(f"{left} {list(a)} and {right} {list(b)} have different ranks")
    return (a[0], *b[1:])


def _rank(shapes: Shapes) -> int | None:
    """Of w1's product, else of w2's; None where both are whole."""
    return next((shapes[role][0] for role in ("w1_b", "w2_b") if role in shapes), None)


LOKR = Algorithm(
    name="lokr",
    title="LoKr",
    paper="arXiv:2309.14859",
    stored={"lycoris": _WORDS, "peft": _WORDS},
    delta=_delta,
    shape=_shape,
    by_rows=lambda shapes, settings: None,
    tiles=_tiles,
    rank=_rank,
)
