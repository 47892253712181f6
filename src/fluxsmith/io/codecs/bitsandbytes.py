"""4-bit weights of bitsandbytes (NF4 and FP4; Dettmers et al. 2023, QLoRA): indices into 16 values, a scale per block.

X.weight                              U8 [n / 2, 1]  two indices a byte, the first in the upper four bits
X.weight.quant_map                    F32 [16]       the values, of magnitude at most 1
X.weight.absmax                       F32 [blocks]   the scale of every `blocksize` elements, or with nested scales
                                      U8 [blocks]    an index into
X.weight.nested_quant_map             F32 [256]      and
X.weight.nested_absmax                F32            the scale of every `nested_blocksize` indices
X.weight.quant_state.bitsandbytes__nf4  U8           JSON: shape, dtype, blocksize, nested_blocksize, nested_offset, ...

w[i] = quant_map[index[i]] * absmax[i // blocksize]
absmax[b] = nested_quant_map[absmax[b]] * nested_absmax[b // nested_blocksize] + nested_offset
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.codecs.codec import Codec, Side
from fluxsmith.io.codecs.recognition import Recognised, bad_side, contents, lone_extent, missing_half, with_suffix
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode", "recognise"]

_STATE = re.compile(r"^(.*)\.quant_state\.bitsandbytes__(nf4|fp4)$")
_SIDES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_TORCH_NAMES = {d.torch: d.name for d in DTYPES.values() if d.is_float}


@dataclass(frozen=True)
class _State:
    """What quant_state says of a weight; `nested` is the number of scales that share a scale, 0 without nested scales."""

    shape: tuple[int, ...]
    dtype: str
    block: int
    nested: int
    offset: float


def recognise(checkpoint: Checkpoint) -> Recognised | None:
    """The 4-bit weights of a checkpoint; None where it has none.

    Raises IncompatibleError naming the key where a weight lacks its state or scales, or they lack their weight.
    """
    tensors = checkpoint.tensors
    states = {match[1]: (key, match[2]) for key in tensors if (match := _STATE.match(key))}
    sides = {key: weight for weight, key in with_suffix(tensors, _SIDES)}
    if not states and not sides:
        return None
    for key, weight in [*sides.items(), *((key, weight) for weight, (key, _) in states.items())]:
        if weight not in tensors:
            raise missing_half(checkpoint, key, weight, "its weight")
        if weight not in states:
            raise missing_half(checkpoint, weight, f"{weight}.quant_state.bitsandbytes__nf4", "its quant_state")
    found = Recognised(f"bitsandbytes 4-bit ({', '.join(sorted({kind for _, kind in states.values()}))})")
    for weight, (key, kind) in states.items():
        state = _state(checkpoint, key)
        needed = _SIDES if state.nested else _SIDES[:2]
        absent = next((weight + side for side in needed if weight + side not in tensors), None)
        if absent is not None:
            raise missing_half(checkpoint, weight, absent, "its")
        found.views[weight] = _view(checkpoint, weight, kind, state)
        found.sides |= {key, *(weight + side for side in needed)}
    return found


def _state(checkpoint: Checkpoint, key: str) -> _State:
    raw = contents(checkpoint, key)
    try:
        fields: dict[str, Any] = json.loads(raw)
        nested = int(fields["nested_blocksize"]) if "nested_offset" in fields else 0
        dtype = _TORCH_NAMES[str(fields["dtype"])]
        block, shape = int(fields["blocksize"]), tuple(map(int, fields["shape"]))
        if block <= 0 or block % 2 or nested < 0 or not shape:
            raise ValueError
        return _State(shape, dtype, block, nested, float(fields.get("nested_offset", 0.0)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise bad_side(checkpoint, key, "JSON with shape, dtype and blocksize", raw[:80]) from None


def _view(checkpoint: Checkpoint, weight: str, kind: str, state: _State) -> View:
    stored, count = checkpoint.tensors[weight], prod(state.shape)
    if stored.nbytes != -(-count // 2):
        raise bad_side(checkpoint, weight, f"{-(-count // 2)} bytes for {list(state.shape)}", f"{stored.nbytes} bytes")
    scales = -(-count // state.block)
    absmax = Side("absmax", _side(checkpoint, f"{weight}.absmax", scales), state.block)
    sides = [absmax, Side("quant_map", _side(checkpoint, f"{weight}.quant_map", 16))]
    block = state.block
    if state.nested:
        block *= state.nested
        nested = _side(checkpoint, f"{weight}.nested_absmax", -(-scales // state.nested))
        sides += [Side("nested_absmax", nested, block), Side("nested_quant_map", _side(checkpoint, f"{weight}.nested_quant_map", 256))]
    columns = prod(state.shape[1:])
    codec = Codec("bitsandbytes", kind, count, columns, block, block // 2, tuple(sides), state.offset)
    plain = lone_extent(stored)
    return View(state.shape, (Extent(plain.file, plain.offset, count, state.dtype, codec),))


def _side(checkpoint: Checkpoint, key: str, count: int) -> Extent:
    """A scale or table, of the size that it must have."""
    view = checkpoint.tensors[key]
    if view.count != count:
        raise bad_side(checkpoint, key, f"{count} values", view.count)
    return lone_extent(view)


def decode(stored: Tensor, out: Tensor, codec: Codec, sides: Mapping[str, Tensor], start: int) -> None:
    """Fill `out` with the values of whole blocks (the last one of a tensor may be shorter)."""
    import torch

    values = sides["quant_map"].float()
    pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1)  # the two values of every byte
    unpacked = pairs.index_select(0, stored.int()).view(-1)
    out.copy_(unpacked[: len(out)])
    scales = sides["absmax"]
    if "nested_absmax" in sides:
        scales = sides["nested_quant_map"].float().index_select(0, scales.int())
        outer = sides["nested_absmax"].float().repeat_interleave(codec.every("nested_absmax") // codec.every("absmax"))
        scales = scales * outer[: len(scales)] + codec.shift
    size, scales = codec.every("absmax"), scales.float()
    whole = len(out) // size
    out[: whole * size].view(whole, size).mul_(scales[:whole].unsqueeze(1))
    out[whole * size :].mul_(scales[-1])
