"""Euler sampling of a flow-matching FLUX transformer (Liu et al. 2022, "Flow Straight and Fast", eq. 1 read backwards).

The model predicts v = dx/dt of the straight path x_t = (1 - t) image + t noise; we walk from t = 1 to t = 0.
Every image has its own seed, and its noise is drawn on the CPU, so a seed gives one image in any batch and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fluxsmith.errors import UsageError
from fluxsmith.pocket.forward import Conditioning, velocity

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["draw_noise", "sample", "time_steps"]


def time_steps(steps: int, shift: float = 1.0) -> Tensor:
    """The times [steps + 1] from 1 to 0; `shift` > 1 spends more of them near the noise: t' = s t / (1 + (s - 1) t)."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * times / (1 + (shift - 1) * times)).float()


def draw_noise(seeds: Sequence[int], tokens: int, channels: int) -> Tensor:
    """Standard normal latents [N, tokens, channels], one CPU generator for each seed."""
    shape = (tokens, channels)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    transformer: FluxTransformer2DModel,
    positive: Conditioning,
    seeds: Sequence[int],
    *,
    grid: tuple[int, int],
    steps: int,
    shift: float = 1.0,
    guidance: float | None = None,
    cfg: float = 1.0,
    negative: Conditioning | None = None,
) -> Tensor:
    """Packed latents [N, rows * columns, channels] for N seeds and N rows of `positive`.

    `guidance` is the embedded guidance of a distilled (dev-like) transformer. `cfg` is classifier-free guidance,
    v_neg + cfg (v_pos - v_neg) (Ho and Salimans 2022); other than 1 it needs `negative` and runs both in one batch.
    """
    _check(transformer, positive, seeds, guidance, cfg, negative)
    device, dtype = transformer.device, transformer.dtype
    latents = draw_noise(seeds, grid[0] * grid[1], transformer.config.in_channels).to(device)
    paired = cfg != 1.0 and negative is not None
    conditioning = _join(negative, positive) if paired else positive
    conditioning = Conditioning(*(x.to(device, x.dtype if x.dtype == torch.bool else dtype) for x in conditioning))
    times = time_steps(steps, shift)
    rows = len(conditioning.mask)
    scale = None if guidance is None else torch.full((rows,), guidance, device=device)
    for now, following in pairwise(times):
        doubled = torch.cat([latents, latents]) if paired else latents
        v = velocity(transformer, doubled.to(dtype), now.to(device).expand(rows), conditioning, grid, scale).float()
        if paired:
            v_negative, v_positive = v.chunk(2)
            v = v_negative + cfg * (v_positive - v_negative)
        latents = latents + (following - now).item() * v
    return latents


def _join(first: Conditioning, second: Conditioning) -> Conditioning:
    return Conditioning(*(torch.cat(pair) for pair in zip(first, second, strict=True)))


def _check(
    transformer: FluxTransformer2DModel,
    positive: Conditioning,
    seeds: Sequence[int],
    guidance: float | None,
    cfg: float,
    negative: Conditioning | None,
) -> None:
    if len(seeds) != len(positive.mask):
        raise ValueError(f"{len(seeds)} seeds for {len(positive.mask)} conditionings; give one seed for each image")
    if negative is not None and len(negative.mask) != len(seeds):
        raise ValueError(f"{len(negative.mask)} negative conditionings for {len(seeds)} seeds")
    if transformer.config.guidance_embeds and guidance is None:
        raise UsageError(
            "generate.guidance-missing", "this transformer embeds guidance and needs a value", fix="give a guidance, such as 3.5"
        )
    if guidance is not None and not transformer.config.guidance_embeds:
        raise UsageError("generate.guidance-unused", "this transformer embeds no guidance", fix="leave guidance out; use cfg instead")
    if cfg != 1.0 and negative is None:
        raise UsageError(
            "generate.negative-missing", f"cfg {cfg:g} needs a negative prompt", fix='give one; "" is the unconditional prompt'
        )
