"""The shapes of FLUX.1 that are measured, from tiny to 12 B; the table of the layouts gives their tensors."""

from collections.abc import Mapping
from types import MappingProxyType

from fluxsmith.layouts import Canonical
from fluxsmith.layouts.flux1 import FLUX1

__all__ = ["SHAPES", "count", "tensors"]

Dims = Mapping[str, int]


def _dims(width: int, double: int, single: int, head: int = 128) -> Dims:
    """FLUX.1 of a width and two depths, with guidance; text and time embeddings as in every FLUX.1."""
    fixed = {"in": 64, "out": 64, "ctx": 4096, "vec": 768, "T": 256, "guidance": 1}
    return MappingProxyType({"H": width, "M": 4 * width, "D": head, "double": double, "single": single} | fixed)


#: tiny: 11 M parameters; small: 0.31 B; mini: Flux-mini's 3.18 B; full: FLUX.1-dev's 11.9 B.
SHAPES: Mapping[str, Dims] = {
    "tiny": _dims(256, 2, 3),
    "small": _dims(2304, 1, 1),
    "mini": _dims(3072, 5, 10),
    "full": _dims(3072, 19, 38),
}


def tensors(shape: str) -> list[Canonical]:
    """The canonical tensors of a shape."""
    return FLUX1.expand(SHAPES[shape])


def count(shape: str) -> int:
    """The parameters of a shape."""
    return sum(tensor.count for tensor in tensors(shape))
