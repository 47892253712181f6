"""From an extent of a quantised tensor to its values: whole blocks are read, decoded and cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from fluxsmith.io.dtypes import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.io.codecs.codec import Codec
    from fluxsmith.io.views import Extent

__all__ = ["DECODERS", "Decode", "Read", "Room", "decode"]

#: Reads the bytes of a plain extent into a tensor of bytes.
Read = Callable[["Extent", "Tensor"], None]
#: A tensor of so many bytes, by name: buffers that are kept from tile to tile.
Room = Callable[[str, int], "Tensor"]
#: Fills `out` (float32, whole blocks from element `start` on) from their bytes and the values of the codec's sides.
Decode = Callable[["Tensor", "Tensor", "Codec", Mapping[str, "Tensor"], int], None]

#: The module of every scheme; its `decode` is a Decode.
DECODERS = {
    "scaled_fp8": "fluxsmith.io.codecs.scaled_fp8",
    "gguf": "fluxsmith.io.codecs.gguf",
    "bitsandbytes": "fluxsmith.io.codecs.bitsandbytes",
    "torchao": "fluxsmith.io.codecs.torchao",
}

_CHUNK = 1 << 18  # elements that are decoded at a time: what a decoder needs besides stays in cache, also for whole tensors


def decode(extent: Extent, read: Read, room: Room) -> Tensor:
    """The values of an extent that has a codec: float32, of shape (count,), in a buffer that `room` gives."""
    import torch

    codec = extent.codec
    assert codec is not None
    start, stop = codec.cover(extent.first, extent.count)
    blocks = extent.stored
    stored = room("stored", blocks.count)
    read(blocks, stored)
    sides = {side.name: _values(side.of(start, stop), side.name, read, room) for side in codec.sides}
    out = room("values", 4 * (stop - start)).view(torch.float32)
    decoder: Decode = import_module(DECODERS[codec.scheme]).decode
    step = max(_CHUNK // codec.block, 1) * codec.block
    for at in range(start, stop, step):
        end = min(at + step, stop)
        raw = stored[codec.byte(at) - codec.byte(start) : codec.byte(end) - codec.byte(start)]
        decoder(raw, out[at - start : end - start], codec, {s.name: s.among(sides[s.name], start, at, end) for s in codec.sides}, at)
    return out[extent.first - start : extent.first - start + extent.count]


def _values(extent: Extent, name: str, read: Read, room: Room) -> Tensor:
    """The values of a side, in the type in which they are stored."""
    import torch

    raw = room(name, extent.nbytes)
    read(extent, raw)
    return raw.view(getattr(torch, DTYPES[extent.dtype].torch or "uint8"))
