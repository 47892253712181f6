"""Random adapters for a shape, as the benchmark applies them.

    python -m benchmarks.adapters SHAPE KIND PATH

`lora` is kohya's (fused names, rank 16, alpha 8), `peft` the same for the split names of diffusers, `lokr` LyCORIS' with
factor 16. All change every matrix of the blocks. Factors are small enough that the merged weights stay ordinary.
"""

import argparse
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shapes import tensors
from fluxsmith.layouts.table import stored_shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KINDS", "RANK", "write_adapter"]

RANK, ALPHA, FACTOR, SPREAD = 16, 8.0, 16, 0.01
Make = Callable[[str, int, int], "dict[str, Tensor]"]


def _random(name: str, *shape: int) -> "Tensor":
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (torch.randn(*shape, generator=generator) * SPREAD).to(torch.bfloat16)


def _alpha() -> "Tensor":
    import torch

    return torch.tensor(ALPHA)


def _lora(name: str, rows: int, columns: int) -> "dict[str, Tensor]":
    key = "lora_unet_" + name.replace(".", "_")
    down, up = _random(f"{key} down", RANK, columns), _random(f"{key} up", rows, RANK)
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": _alpha()}


def _peft(name: str, rows: int, columns: int) -> "dict[str, Tensor]":
    key = f"transformer.{name}"
    down, up = _random(f"{key} down", RANK, columns), _random(f"{key} up", rows, RANK)
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": _alpha()}


def _lokr(name: str, rows: int, columns: int) -> "dict[str, Tensor]":
    key = "lora_unet_" + name.replace(".", "_")
    small, large = _random(f"{key} w1", FACTOR, FACTOR), _random(f"{key} w2", rows // FACTOR, columns // FACTOR)
    return {f"{key}.lokr_w1": small, f"{key}.lokr_w2": large, f"{key}.alpha": _alpha()}


#: Kind -> (layout of its names, what it makes for one matrix).
KINDS: Mapping[str, tuple[str, Make]] = {"lora": ("bfl", _lora), "peft": ("diffusers", _peft), "lokr": ("bfl", _lokr)}


def write_adapter(shape: str, kind: str, path: Path) -> None:
    """A random adapter of a kind for a model of a shape."""
    from safetensors.torch import save_file

    layout, make = KINDS[kind]
    inside = [tensor for tensor in tensors(shape) if tensor.block is not None]
    matrices = {name: sides for name, sides in stored_shapes(inside, layout).items() if len(sides) == 2}
    found: dict[str, Tensor] = {}
    for name, (rows, columns) in matrices.items():
        found |= make(name.removesuffix(".weight"), rows, columns)
    save_file(found, path)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("path", type=Path)
    a = parser.parse_args()
    write_adapter(a.shape, a.kind, a.path)


if __name__ == "__main__":
    _main()
