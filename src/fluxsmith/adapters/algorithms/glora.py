"""GLoRA: a low-rank change of the weight's input and one beside it (Chavan et al. 2023, arXiv:2306.07967; LyCORIS' form).

dW = scale * (W a1 a2 + b1 b2)      a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in * kernel]
     of a convolution W a is over its channels; b2 [r, in] with a Tucker core bm [r, r, *kernel]
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings, Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GLORA"]


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    import torch

    assert weight is not None
    b1, b2 = factors["b1"].flatten(1), factors["b2"]
    if "bm" in factors:
        b2 = torch.einsum("pq...,qi->pi...", factors["bm"], b2.flatten(1))
    delta = (b1 @ b2.flatten(1)).reshape(weight.shape)
    a1, a2 = factors["a1"].flatten(1), factors["a2"].flatten(1)
    if weight.dim() == 2:
        delta.addmm_(weight @ a1, a2)
    else:
        delta += torch.einsum("oj...,ji->oi...", torch.einsum("oi...,ij->oj...", weight, a1), a2)
    return delta.mul_(settings["scale"])


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    a1, a2, b1, b2 = (shapes[role] for role in ("a1", "a2", "b1", "b2"))
    core = shapes.get("bm")
    if min(map(len, (a1, a2, b1, b2))) < 2 or prod(a1[2:]) * prod(a2[2:]) * prod(b1[2:]) != 1:
        raise ValueError(f"a1 {list(a1)}, a2 {list(a2)} and b1 {list(b1)} are no matrices")
    if a1[1] != a2[0] or a1[0] != a2[1]:
        raise ValueError(f"a1 {list(a1)} and a2 {list(a2)} are no change of one input")
    if (b1[1], b2[0]) != (core[:2] if core is not None else (b2[0], b2[0])):
        raise ValueError(f"b1 {list(b1)} and b2 {list(b2)} have different ranks" + (f" than bm {list(core)}" if core is not None else ""))
    if b2[1] != a1[0]:
        raise ValueError(f"b2 {list(b2)} and a1 {list(a1)} are for different inputs")
    return (b1[0], b2[1], *(core[2:] if core is not None else b2[2:]))


GLORA = Algorithm(
    name="glora",
    title="GLoRA",
    paper="arXiv:2306.07967",
    stored={"lycoris": {"a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight", "bm": "bm.weight"}},
    delta=_delta,
    shape=_shape,
    reads=lambda shapes: "rows",
    by_rows=lambda shapes, settings: frozenset({"b1"}),
    rank=lambda shapes: shapes["a2"][0],
)
