"""LoRA and LoCon: a product of two thin matrices (Hu et al. 2021, arXiv:2106.09685; LoCon for convolutions).

dW = scale * up @ down          up [out, r], down [r, in * kernel]
dW = scale * up @ (mid x down)  with a Tucker core mid [r, r, *kernel], down [r, in]
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LORA"]


def _delta(factors: Mapping[str, Tensor], settings: Mapping[str, float], rows: Rows, weight: Tensor | None) -> Tensor:
    import torch

    up, down = factors["up"].flatten(1), factors["down"]
    if "mid" in factors:  # dW[o, i, k...] = sum_{p, q} up[o, p] mid[p, q, k...] down[q, i]
        down = torch.einsum("pq...,qi->pi...", factors["mid"], down.flatten(1))
    return (up @ down.flatten(1)).mul_(settings["scale"]).reshape(rows.count, *rows.shape[1:])


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    up, down = shapes["up"], shapes["down"]
    if up[1] != down[0] or prod(up[2:]) != 1:
        raise ValueError(f"up {list(up)} and down {list(down)} have different ranks")
    return (up[0], down[1], *(shapes["mid"][2:] if "mid" in shapes else down[2:]))


LORA = Algorithm(
    name="lora",
    title="LoRA, LoCon",
    paper="arXiv:2106.09685",
    roles={
        "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
        "lora_A.weight": "down", "lora_B.weight": "up",
        "lora.down.weight": "down", "lora.up.weight": "up",
    },
    delta=_delta,
    shape=_shape,
    by_rows=frozenset({"up"}),
    rank=lambda shapes: shapes["down"][0],
)  # fmt: skip
