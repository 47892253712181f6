"""A FLUX.1 whose matrices divide into blocks of 32 and 64: width 64, two heads of 32."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from support.tiny_flux import make_transformer, save_bfl, save_diffusers, tensors_of

#: Fields of TINY that make it so. Its `txt_in` and `img_in` stay no matrices of a block.
WIDTH_64: dict[str, Any] = {"attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": (8, 12, 12)}


@dataclass(frozen=True)
class Wide:
    """Two models, each as a diffusers folder and as a BFL file (bf16), and the first one's tensors by BFL names."""

    folder: Path
    file: Path
    other: Path
    tensors: dict[str, Tensor]


def make_wide(root: Path) -> Wide:
    """The files, and what was in the first."""
    files: list[Path] = []
    for seed, name in enumerate("ab", start=1):
        folder = save_diffusers(make_transformer(seed, **WIDTH_64), root / name)
        files.append(save_bfl(folder, root / f"{name}.safetensors"))
    return Wide(root / "a", files[0], files[1], tensors_of(files[0]))


def flux_inputs() -> dict[str, Any]:
    """One call of such a model: four image tokens, three of text."""
    import torch

    random = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 4, 16, generator=random),
        "encoder_hidden_states": torch.randn(1, 3, 32, generator=random),
        "pooled_projections": torch.randn(1, 24, generator=random),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
        "guidance": torch.tensor([3.5]),
    }
