"""LoHa: the elementwise product of two low-rank matrices (FedPara, Hyeon-Woo et al. 2022, arXiv:2108.06098).

dW = scale * (w1_a @ w1_b) * (w2_a @ w2_b)     a [out, r], b [r, in * kernel]
dW = scale * T(t1, w1_a, w1_b) * T(t2, w2_a, w2_b)
     T(t, a, b)[o, i, k...] = sum_{p, q} t[p, q, k...] a[p, o] b[q, i]     t [r, r, *kernel], a [r, out], b [r, in]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings, Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOHA"]

_WORDS = {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b", "t1": "hada_t1", "t2": "hada_t2"}


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    delta = _half(factors, "1", rows).mul_(_half(factors, "2", rows))
    return delta.mul_(settings["scale"]).reshape(rows.count, *rows.shape[1:])


def _half(factors: Mapping[str, Tensor], half: str, rows: Rows) -> Tensor:
    import torch

    a, b = factors[f"w{half}_a"], factors[f"w{half}_b"]
    if f"t{half}" not in factors:
        return a @ b.flatten(1)
    return torch.einsum("pq...,qi,po->oi...", factors[f"t{half}"], b, a[:, rows.start : rows.stop])


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    first, second = _half_shape(shapes, "1"), _half_shape(shapes, "2")
    if first != second:
        raise ValueError(f"w1 makes {list(first)}, w2 makes {list(second)}")
    return first


def _half_shape(shapes: Shapes, half: str) -> tuple[int, ...]:
    a, b = shapes[f"w{half}_a"], shapes[f"w{half}_b"]
    core = shapes[f"t{half}"] if "t1" in shapes or "t2" in shapes else None
    if len(a) != 2 or len(b) < 2 or (core is not None and len(b) != 2):
        raise ValueError(f"w{half}_a {list(a)} and w{half}_b {list(b)} are no matrices")
    if core is None:
        if a[1] != b[0]:
            raise ValueError(f"w{half}_a {list(a)} and w{half}_b {list(b)} have different ranks")
        return (a[0], *b[1:])
    if core[:2] != (a[0], b[0]):
        raise ValueError(f"t{half} {list(core)}, w{half}_a {list(a)} and w{half}_b {list(b)} have different ranks")
    return (a[1], b[1], *core[2:])


LOHA = Algorithm(
    name="loha",
    title="LoHa",
    paper="arXiv:2108.06098",
    stored={"lycoris": _WORDS, "peft": _WORDS},
    delta=_delta,
    shape=_shape,
    by_rows=lambda shapes, settings: None if "t1" in shapes else frozenset({"w1_a", "w2_a"}),
    rank=lambda shapes: shapes["w1_b"][0],
)
