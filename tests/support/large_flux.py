"""FLUX.1 checkpoints that are large enough for a run of seconds, made quickly: one block of random numbers, repeated."""

from pathlib import Path

from fluxsmith.io.header import TensorEntry, encode_header
from fluxsmith.layouts.flux1 import FLUX1

__all__ = ["save_large"]

#: About 55 million parameters.
DIMS = {"H": 704, "M": 2816, "D": 64, "double": 2, "single": 2, "in": 16, "out": 16, "ctx": 512, "vec": 256, "T": 256, "guidance": 1}
BLOCK = 999_983  # elements; a prime, so that no two tensors begin alike


def save_large(file: Path, seed: int) -> Path:
    """A BFL file in bf16, some 110 MB."""
    import torch

    entries: dict[str, TensorEntry] = {}
    at = 0
    for tensor in FLUX1.expand(DIMS):
        entries[tensor.name] = TensorEntry("BF16", tensor.shape, at, at + 2 * tensor.count)
        at += 2 * tensor.count
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(BLOCK, generator=generator) * 0.05).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    with file.open("wb") as stream:
        stream.write(encode_header(entries, {"format": "pt"}))
        for start in range(0, at, len(block)):
            stream.write(block[: at - start])
    return file
