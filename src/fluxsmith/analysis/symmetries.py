"""Which units of a FLUX.1 transformer may change places without changing what it computes.

Free, and listed here:
    hidden units of an MLP        rows of its first layer with columns of its second (the activation works element by element)
    heads of an attention         q, k and v rows with the columns of the output layer; the norms of q and k are shared by
                                  all heads. The two streams of a double block attend together, so they share one order
    dims of v inside a head       v rows with the same columns; again one order for both streams
    hidden units of the embedders time_in, vector_in, guidance_in

Not free: dims of q and k, which rotary embedding ties to frequencies and the norms to scales; their size, which the norms
take away anyhow. The channels of the residual stream could be exchanged in all tensors at once; that is not listed, as
models that share an ancestor share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Place", "Units", "flux1_units"]


@dataclass(frozen=True, slots=True)
class Place:
    """Rows (or columns) of a tensor that belong to units, from `start` on."""

    name: str
    start: int


@dataclass(frozen=True)
class Units:
    """Units that may change places: `count` of them, in rows and columns of these tensors.

    Where `head` is not 0 they are the v dims of an attention with heads of that width: `fixed` are rows (q and k) that
    follow their head with their dims in place.
    """

    where: str
    count: int
    rows: tuple[Place, ...]
    columns: tuple[Place, ...]
    head: int = 0
    fixed: tuple[Place, ...] = ()


def flux1_units(dims: Mapping[str, int]) -> list[Units]:
    """All units of a model with these dims (H, M, D, double, single, guidance), block after block."""
    names = ("time_in", "vector_in", *(("guidance_in",) if dims.get("guidance") else ()))
    found = [Units(name, dims["H"], _rows((f"{name}.in_layer", 0)), (Place(f"{name}.out_layer.weight", 0),)) for name in names]
    for block in range(dims["double"]):
        found += _double(block, dims["H"], dims["M"], dims["D"])
    for block in range(dims["single"]):
        found += _single(block, dims["H"], dims["M"], dims["D"])
    return found


def _rows(*places: tuple[str, int]) -> tuple[Place, ...]:
    """Rows of layers, in their weights and biases."""
    return tuple(Place(f"{stem}.{suffix}", start) for stem, start in places for suffix in ("weight", "bias"))


def _double(block: int, width: int, hidden: int, head: int) -> list[Units]:
    stems = [f"double_blocks.{block}.{stream}" for stream in ("img", "txt")]
    qkv = [f"{stem}_attn.qkv" for stem in stems]
    attention = Units(
        f"double.{block} heads", width, _rows(*((stem, 2 * width) for stem in qkv)),
        tuple(Place(f"{stem}_attn.proj.weight", 0) for stem in stems), head,
        _rows(*((stem, start) for stem in qkv for start in (0, width))),
    )  # fmt: skip
    mlps = [
        Units(f"double.{block} {stem[-3:]}_mlp", hidden, _rows((f"{stem}_mlp.0", 0)), (Place(f"{stem}_mlp.2.weight", 0),)) for stem in stems
    ]
    return [attention, *mlps]


def _single(block: int, width: int, hidden: int, head: int) -> list[Units]:
    first, second = f"single_blocks.{block}.linear1", f"single_blocks.{block}.linear2.weight"
    heads = Units(f"single.{block} heads", width, _rows((first, 2 * width)), (Place(second, 0),), head, _rows((first, 0), (first, width)))
    return [heads, Units(f"single.{block} mlp", hidden, _rows((first, 3 * width)), (Place(second, width),))]
