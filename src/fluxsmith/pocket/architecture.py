"""The shape of a pocket checkpoint: a stock `FluxTransformer2DModel` of 0.58 M parameters, built without global randomness."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from fluxsmith.pocket.captions import CONTEXT_DIM, POOLED_DIM
from fluxsmith.pocket.streams import stream

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["CONFIG", "build", "copy_of"]

CONFIG = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": CONTEXT_DIM,
    "pooled_projection_dim": POOLED_DIM,
    "axes_dims_rope": (4, 6, 6),
}

MODULATION = re.compile(r"(^|\.)norm\w*\.linear$")


def build(seed: int) -> FluxTransformer2DModel:
    """A fresh transformer without guidance embedder, weights drawn from the streams `init/<layer>` of `seed`."""
    transformer = _empty(guidance_embeds=False)
    for name, module in transformer.named_modules():
        _initialise(name, module, seed)
    return transformer


def copy_of(transformer: FluxTransformer2DModel, guidance_seed: int | None = None) -> FluxTransformer2DModel:
    """A copy of `transformer`; with `guidance_seed` and no guidance embedder yet, one that has it.

    The new embedder's last layer is zero, so at the start the copy computes the same whatever guidance it is told.
    """
    embeds = bool(transformer.config.guidance_embeds)
    copy = _empty(guidance_embeds=embeds or guidance_seed is not None)
    copy.load_state_dict(transformer.state_dict(), strict=guidance_seed is None)
    if guidance_seed is not None and not embeds:
        embedder = copy.time_text_embed.guidance_embedder
        _initialise("guidance_embedder.linear_1", embedder.linear_1, guidance_seed)
        nn.init.zeros_(embedder.linear_2.weight)
        nn.init.zeros_(embedder.linear_2.bias)
    return copy


def _empty(guidance_embeds: bool) -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**CONFIG, guidance_embeds=guidance_embeds)
    return transformer.to_empty(device="cpu")


def _initialise(name: str, module: nn.Module, seed: int) -> None:
    """PyTorch's default linear initialisation, but modulation and the last projection are zero (AdaLN-Zero, Peebles & Xie 2023)."""
    if isinstance(module, nn.Linear):
        zero = name == "proj_out" or MODULATION.search(name)
        bound = 0.0 if zero else 1 / math.sqrt(module.in_features)
        generator = stream(seed, f"init/{name}")
        nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif list(module.parameters(recurse=False)):
        nn.init.ones_(module.weight)
