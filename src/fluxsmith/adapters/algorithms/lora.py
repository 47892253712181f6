"""LoRA and LoCon: a product of two thin matrices (Hu et al. 2021, arXiv:2106.09685; LoCon for convolutions).

dW = scale * up @ down          up [out, r], down [r, in * kernel]
dW = scale * up @ (mid x down)  with a Tucker core mid [r, r, *kernel], down [r, in]
dW = scale * (up @ down + S)    with the largest of what the product leaves, sparse: LyCORIS' extraction calls it bias, but
                                it is of the weight, [out, in * kernel] as coordinates [2, n] and values [n]
db = scale * up                 up [out] alone: the bias of `lora_B`

rsLoRA (arXiv:2312.03732) is another scale, alpha / sqrt(r), which the dialect knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from fluxsmith.adapters.algorithms.base import Algorithm, Rows, Settings, Shapes
from fluxsmith.errors import IncompatibleError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LORA"]


def _delta(factors: Mapping[str, Tensor], settings: Settings, rows: Rows, weight: Tensor | None) -> Tensor:
    import torch

    up = factors["up"].flatten(1) if "down" in factors else factors["up"]
    if "down" in factors:
        down = factors["down"]
        if "mid" in factors:  # dW[o, i, k...] = sum_{p, q} up[o, p] mid[p, q, k...] down[q, i]
            down = torch.einsum("pq...,qi->pi...", factors["mid"], down.flatten(1))
        up = up @ down.flatten(1)
        if "sparse_values" in factors:
            _add_sparse(up, factors, rows)
    return (up * settings["scale"] if up is factors["up"] else up.mul_(settings["scale"])).reshape(rows.count, *rows.shape[1:])


def _add_sparse(delta: Tensor, factors: Mapping[str, Tensor], rows: Rows) -> None:
    """Add the values whose row is among `rows` to a delta [rows, in * kernel]."""
    row, column = factors["sparse_indices"].long()
    _check_within(row, rows.shape[0])
    _check_within(column, delta.shape[1])
    mine = (row >= rows.start) & (row < rows.stop)
    delta.index_put_((row[mine] - rows.start, column[mine]), factors["sparse_values"].flatten()[mine], accumulate=True)


def _check_within(index: Tensor, side: int) -> None:
    """Coordinates are known when they are read only: a file is not accepted in part."""
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < side):
        raise IncompatibleError(
            "adapter.bad-coordinates",
            "`bias_indices` points outside of the weight",
            facts={"expected": f"0 to {side - 1}", "found": f"{int(index.min())} to {int(index.max())}"},
            fix="extract the adapter again",
        )


def _shape(shapes: Shapes) -> tuple[int | None, ...]:
    up = shapes["up"]
    if len(shapes) == len(up) == 1:
        return up
    down, mid = shapes["down"], shapes.get("mid")
    if len(up) < 2 or len(down) < 2 or prod(up[2:]) != 1:
        raise ValueError(f"up {list(up)} and down {list(down)} are no matrices")
    inner = mid[:2] if mid is not None else (up[1], down[0])
    if mid is not None and prod(down[2:]) != 1:
        raise ValueError(f"mid {list(mid)} has the kernel, but down {list(down)} has one, too")
    if (up[1], down[0]) != inner or (mid is None and up[1] != down[0]):
        raise ValueError(f"up {list(up)} and down {list(down)} have different ranks" + (f" than mid {list(mid)}" if mid else ""))
    _check_sparse(shapes)
    return (up[0], down[1], *(mid[2:] if mid is not None else down[2:]))


def _check_sparse(shapes: Shapes) -> None:
    found = [role for role in ("sparse_indices", "sparse_values", "sparse_size") if role in shapes]
    if not found:
        return
    indices, values = shapes["sparse_indices"], shapes["sparse_values"]
    if len(indices) != 2 or indices[0] != 2 or indices[1] != prod(values):
        raise ValueError(f"sparse coordinates {list(indices)} do not go with values {list(values)}")


def _by_rows(shapes: Shapes, settings: Settings) -> frozenset[str] | None:
    return None if "sparse_values" in shapes else frozenset({"up"})


LORA = Algorithm(
    name="lora",
    title="LoRA, LoCon",
    paper="arXiv:2106.09685",
    stored={
        "lycoris": {
            "down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight",
            "sparse_indices": "bias_indices", "sparse_values": "bias_values", "sparse_size": "bias_size",
        },
        "peft": {"down": "lora_A.weight", "up": "lora_B.weight"},
    },
    aliases={"lora.down.weight": "down", "lora.up.weight": "up"},
    biases={"lora_B.bias": "up"},
    delta=_delta,
    shape=_shape,
    by_rows=_by_rows,
    tiles=lambda shapes, rows: {"up": (rows.start, rows.stop)},
    rank=lambda shapes: shapes["down"][0] if "down" in shapes else None,
)  # fmt: skip
