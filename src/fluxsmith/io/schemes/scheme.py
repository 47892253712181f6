"""What a quantisation scheme is: the type of quantised tensors, what shares a scale, and what is stored beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Extra", "Scheme", "Shape", "Stored", "sibling"]

Shape = tuple[int, ...]
#: Name, shape, and whether it is quantised, of a tensor of the output.
Stored = tuple[str, Shape, bool]


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor that a scheme stores beside a quantised one: its scales, or with `data` a constant."""

    name: str
    dtype: str
    shape: Shape
    data: bytes | None = None


def _nothing(tensors: Sequence[Stored]) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Scheme:
    """A way to store weights in fewer bits that some program reads.

    `name` is what users write, `dtype` the type of the quantised tensors. A value is stored as value / scale; `per` gives
    for a shape how many consecutive elements share a scale (None: all of the tensor); a scheme without `per` has no
    scales of its own. `rename` gives the name under which a quantised tensor is stored, `beside` the extra tensors beside
    it, `marker` one for the whole file (of the prefix of its names), `metadata` what the header's metadata get, `config`
    what a folder's config.json gets. `container` says which outputs can hold it: `safetensors`, `gguf`, or `diffusers` (a
    folder with a config.json).
    """

    name: str
    dtype: str
    about: str
    container: Literal["safetensors", "gguf", "diffusers"] = "safetensors"
    per: Callable[[Shape], int | None] | None = None
    scale_dtype: str = "F32"
    rename: Callable[[str], str] = str
    beside: Callable[[str, Shape], tuple[Extra, ...]] = lambda name, shape: ()
    marker: Callable[[str], Extra] | None = None
    metadata: Callable[[Sequence[Stored]], Mapping[str, str]] = _nothing
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


def sibling(weight: str, last: str) -> str:
    """The name of a tensor beside `X.weight`: `X.<last>`."""
    return weight.removesuffix("weight") + last
