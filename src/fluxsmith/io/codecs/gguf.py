"""The block types of GGUF: blocks of 32, 64 or 256 weights with their scales inside (ggml-quants.c of llama.cpp).

Decoded by the `gguf` package's own formulas, which are those of ggml. Types without blocks (F32, F16, BF16) have no codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.io.codecs.codec import Codec

__all__ = ["BLOCKS", "decode", "require_package"]

#: The types that are decoded: number in the file -> (name, elements of a block, bytes of a block).
BLOCKS: dict[int, tuple[str, int, int]] = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip

_ROW = 1 << 12  # elements that are decoded together: the package takes sixteen rows at a time, which then stay in cache


def require_package() -> None:
    """Raise UsageError where the package that decodes is not installed."""
    if find_spec("gguf") is None:
        raise UsageError("usage.missing-extra", "gguf is not installed", fix="pip install 'fluxsmith[gguf]'")


def decode(stored: Tensor, out: Tensor, codec: Codec, sides: Mapping[str, Tensor], start: int) -> None:
    """Fill `out` with the values of whole blocks."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[codec.kind]
    elements = _ROW // codec.block * codec.block
    width = elements // codec.block * codec.block_bytes
    rows = len(stored) // width
    for raw, at in ((stored[: rows * width].view(rows, width), 0), (stored[rows * width :].view(1, -1), rows * elements)):
        if raw.numel():
            values = torch.from_numpy(dequantize(raw.numpy(), kind)).view(-1)
            out[at : at + len(values)].copy_(values)
