"""Random checkpoints of a shape: a base and fine-tunes of it, in BFL's or diffusers' layout; and sparse files.

    python -m benchmarks.inputs SHAPE MODEL LAYOUT PATH

Every tensor of the base is N(0, 0.02) (norm scales: 1 + that), a fine-tune adds N(0, 0.002), all rounded to bf16. To
write gigabytes in seconds a tensor repeats one random block of its own; the blocks' lengths are primes, so that no
stride through a tensor meets the same values again and again, and so that base and noise do not repeat together.
"""

import argparse
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shapes import tensors
from fluxsmith.io.header import encode_header
from fluxsmith.io.shards import OutputFile, place
from fluxsmith.io.writer import index_json
from fluxsmith.layouts import Canonical
from fluxsmith.layouts.emission import OutputTensor, emit
from fluxsmith.layouts.flux1 import FLUX1

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MODELS", "write_model", "write_sparse"]

#: Seed of what a model adds to the base.
MODELS: Mapping[str, int | None] = {"base": None, "a": 1, "b": 2}
SPREAD, NOISE = 0.02, 0.002
_BASE_BLOCK, _NOISE_BLOCK = 262_139, 250_007
_TILE = 1 << 20
_SHARD = 4 * 10**9
_METADATA = {"format": "pt"}


class _Values:
    """The elements of one tensor of one model, computed where they are asked for."""

    def __init__(self, tensor: Canonical, noise_seed: int | None) -> None:
        self._mean = 1.0 if tensor.name.endswith(".scale") else 0.0
        self._base = _block(tensor, _BASE_BLOCK, 0) * SPREAD
        self._noise = None if noise_seed is None else _block(tensor, _NOISE_BLOCK, noise_seed) * NOISE

    def part(self, start: int, stop: int) -> "Tensor":
        """Elements [start, stop) in bf16."""
        import torch

        values = _cycle(self._base, start, stop) + self._mean
        if self._noise is not None:
            values = values + _cycle(self._noise, start, stop)
        return values.to(torch.bfloat16)


def _block(tensor: Canonical, length: int, seed: int) -> "Tensor":
    import torch

    # crc32, since torch's generator on the CPU takes 32 bits of a seed
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}|{tensor.name}".encode()))
    return torch.randn(min(length, tensor.count), generator=generator)


def _cycle(block: "Tensor", start: int, stop: int) -> "Tensor":
    """Elements [start, stop) of a block repeated without end."""
    first = start % len(block)
    turns = -(-(first + stop - start) // len(block))
    return block.repeat(turns)[first : first + stop - start]


def _files(emitted: list[OutputTensor], layout: str, stem: str) -> list[OutputFile]:
    described = [(tensor.name, "BF16", tensor.shape) for tensor in emitted]
    return place(described, stem=stem, shard_size=_SHARD if layout == "diffusers" else None, metadata=_METADATA)


def _bytes(tensor: OutputTensor, values: Mapping[str, _Values]) -> Iterator[memoryview]:
    import torch

    for placement in sorted(tensor.placements, key=lambda p: p.at):
        stop = placement.start + placement.count
        for start in range(placement.start, stop, _TILE):
            part = values[placement.source].part(start, min(start + _TILE, stop))
            yield part.view(torch.uint8).numpy().data


def write_model(shape: str, model: str, layout: str, path: Path) -> None:
    """A model of MODELS as one file (`bfl`), or as a folder of shards with an index (`diffusers`)."""
    import torch

    torch.set_num_threads(1)  # as fast for short blocks, and no threads that spin while others use the cores
    canonical = tensors(shape)
    by_name = {tensor.name: tensor for tensor in canonical}
    emitted = {tensor.name: tensor for tensor in emit(canonical, layout, FLUX1)}
    folder = layout == "diffusers"
    files = _files(list(emitted.values()), layout, "diffusion_pytorch_model" if folder else path.stem)
    root = path if folder else path.parent
    root.mkdir(parents=True, exist_ok=True)
    for file in files:
        with (root / file.name).open("wb") as stream:
            stream.write(encode_header(file.tensors, _METADATA))
            for name in file.tensors:
                sources = {p.source for p in emitted[name].placements}
                values = {source: _Values(by_name[source], MODELS[model]) for source in sources}
                for data in _bytes(emitted[name], values):
                    stream.write(data)
    if len(files) > 1:
        (root / "diffusion_pytorch_model.safetensors.index.json").write_text(index_json(files))


def write_sparse(shape: str, path: Path) -> None:
    """A file of a shape's true size whose weights are all zero and take no room on the disk."""
    (file,) = _files(emit(tensors(shape), "bfl", FLUX1), "bfl", path.stem)
    with path.open("wb") as stream:
        stream.write(encode_header(file.tensors, _METADATA))
        stream.truncate(file.size)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("layout", choices=["bfl", "diffusers"])
    parser.add_argument("path", type=Path)
    a = parser.parse_args()
    write_model(a.shape, a.model, a.layout, a.path)


if __name__ == "__main__":
    _main()
