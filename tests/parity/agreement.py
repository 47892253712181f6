"""How much of two checkpoints is equal as bf16, and how far apart the rest is; a peer without its progress bar."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.recipes.expressions import Expression
from support.tiny_flux import tensors_of

__all__ = ["Agreement", "Silent", "agreement", "merged"]


#: Two sums of a few float32 numbers of the size of these weights, in different orders, are nearer than this.
NOISE = 1e-7


@dataclass(frozen=True)
class Agreement:
    """The share of equal elements, and how many of the others are not neighbours.

    Neighbours are one bf16 number apart, or differ by no more than float32's own rounding (next to zero, where terms
    cancel, bf16 numbers are denser than that).
    """

    share: float
    far: int


def agreement(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Agreement:
    """Compare two checkpoints with the same names and shapes; both are rounded to bf16."""
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in found)
    one = torch.cat([found[name].flatten().to(torch.bfloat16) for name in sorted(found)])
    other = torch.cat([expected[name].flatten().to(torch.bfloat16) for name in sorted(found)])
    distance = (_order(one) - _order(other)).abs()
    far = (distance > 1) & ((one.float() - other.float()).abs() > NOISE)
    return Agreement(float((distance == 0).double().mean()), int(far.sum()))


def _order(values: Tensor) -> Tensor:
    """bf16 numbers as integers in their order; both zeros are 0."""
    bits = values.view(torch.int16).int() & 0xFFFF
    return torch.where(bits < 0x8000, bits, 0x8000 - bits)


def merged(wish: Expression, folder: Path, dtype: str = "bf16") -> dict[str, Tensor]:
    """The tensors of a wish."""
    out = folder / "fluxsmith.safetensors"
    fs.merge(wish, out, dtype=dtype, force=True)
    return tensors_of(out)


class Silent:
    """In place of sd-mecha's progress bar."""

    def __init__(self, *_: object, **__: object) -> None: ...
    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None: ...
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
