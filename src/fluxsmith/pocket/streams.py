"""Random numbers by name: every draw of the pocket world comes from a generator keyed by (seed, stream)."""

import hashlib

import torch

__all__ = ["stream"]


def stream(seed: int, name: str) -> torch.Generator:
    """A fresh CPU generator for the stream `name` of `seed`; the same pair always gives the same numbers."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
