"""One call of a stock diffusers FLUX transformer with a text mask that really masks.

A bool mask over text and image keys reaches every attention of both block kinds through `joint_attention_kwargs`; pads
then have no influence at all. (A float 0/1 mask would be *added* to the logits and leave pads 37 % of a token's odds.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["Conditioning", "image_ids", "velocity"]


class Conditioning(NamedTuple):
    """What a text encoder says: `prompt_embeds` [B, T, C], `pooled` [B, V], bool `mask` [B, T], true where a token is real."""

    prompt_embeds: Tensor
    pooled: Tensor
    mask: Tensor


def image_ids(grid: tuple[int, int]) -> Tensor:
    """Position ids [rows * columns, 3] = (0, row, column) of packed image tokens, as FLUX counts them."""
    rows, columns = grid
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()


def velocity(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    times: Tensor,
    conditioning: Conditioning,
    grid: tuple[int, int],
    guidance: Tensor | None = None,
) -> Tensor:
    """The predicted d x_t / d t [B, S, C] where x_t = (1 - t) image + t noise.

    `latents` [B, S, C], `times` [B] in 0..1, `guidance` [B] only for transformers that embed it.
    """
    batch, tokens = latents.shape[:2]
    image_mask = conditioning.mask.new_ones(batch, tokens)
    mask = torch.cat([conditioning.mask, image_mask], dim=1)[:, None, None, :]
    return transformer(
        hidden_states=latents,
        encoder_hidden_states=conditioning.prompt_embeds,
        pooled_projections=conditioning.pooled,
        timestep=times,
        guidance=guidance,
        img_ids=image_ids(grid).to(latents.device),
        txt_ids=latents.new_zeros(conditioning.mask.shape[1], 3),
        joint_attention_kwargs={"attention_mask": mask},
        return_dict=False,
    )[0]
