"""Tiny FLUX.1 checkpoints: stock FluxTransformer2DModel of width 48 with random weights, saved in every layout.

Every tensor is random (stock initialisation leaves biases and norms equal, and so hides swapped tensors); the same
seed gives the same weights.
"""

# pyright: reportMissingTypeArgument=false
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluxsmith as fs

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel
    from torch import Tensor

__all__ = ["TINY", "TinyCheckpoints", "make_transformer", "save_bfl", "save_comfy", "save_diffusers", "tensors_of"]

#: Width 48 = 2 heads of 24, depth 2 + 3: 315,184 parameters with guidance, 126 diffusers tensors or 92 of BFL's.
TINY: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 24,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 8, 8),
}


@dataclass(frozen=True)
class TinyCheckpoints:
    """Checkpoints of one session, not to be changed: tests that break one take a copy.

    `a`, `b`, `c` are BFL files (bf16) of three models of one shape, `schnell` one without guidance layers; `sharded`
    is `a` in diffusers shards, `comfy` and `fp8` are `a` with ComfyUI's prefix and in fp8.
    """

    root: Path
    a: Path
    b: Path
    c: Path
    schnell: Path
    sharded: Path
    comfy: Path
    fp8: Path


def make_transformer(seed: int, **changes: Any) -> "FluxTransformer2DModel":
    """A stock transformer in bf16 with every tensor drawn from N(0, 0.05); `changes` replace fields of TINY."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    model = FluxTransformer2DModel(**{**TINY, **changes})
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(torch.bfloat16)
    return model.eval()


def save_diffusers(model: "FluxTransformer2DModel", folder: Path, *, shard_size: str = "100KB") -> Path:
    """The model as diffusers saves it: shards, index and config."""
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def save_bfl(source: Path, file: Path, *, dtype: str | None = None) -> Path:
    """A checkpoint as one file with Black Forest Labs' names."""
    fs.merge(str(source), file, layout="bfl", dtype=dtype)
    return file


def save_comfy(source: Path, file: Path) -> Path:
    """A checkpoint as one file with ComfyUI's prefix."""
    fs.merge(str(source), file, layout="comfy")
    return file


def tensors_of(path: Path) -> "dict[str, Tensor]":
    """Every tensor of a file, or of all files of a folder."""
    from safetensors.torch import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def save_all(root: Path) -> TinyCheckpoints:
    """The checkpoints of a session."""
    made: dict[str, Path] = {}
    for seed, name in enumerate("abc", start=1):
        folder = save_diffusers(make_transformer(seed), root / f"{name}-diffusers")
        made[name] = save_bfl(folder, root / f"{name}.safetensors")
    plain = save_diffusers(make_transformer(4, guidance_embeds=False), root / "schnell-diffusers")
    return TinyCheckpoints(
        root,
        **made,
        schnell=save_bfl(plain, root / "schnell.safetensors"),
        sharded=root / "a-diffusers",
        comfy=save_comfy(made["a"], root / "comfy.safetensors"),
        fp8=save_bfl(made["a"], root / "fp8.safetensors", dtype="fp8_e4m3"),
    )
