"""Flow-matching objectives of the pocket checkpoints: batches, times, and the two losses (data, guidance distillation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fluxsmith.pocket.captions import FRAMES, caption, encode
from fluxsmith.pocket.digits import GRID, apply_styles, load_split, pack
from fluxsmith.pocket.forward import Conditioning, velocity

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["Batch", "draw_batch", "flow_loss", "guidance_loss", "stratified_times"]

CAPTION_DROPOUT = 0.1


class Batch(NamedTuple):
    """`clean` and `noise` [B, 16, 4], `times` [B], and the conditioning of B captions."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    conditioning: Conditioning

    @property
    def noisy(self) -> Tensor:
        """x_t = (1 - t) clean + t noise."""
        return torch.lerp(self.clean, self.noise, self.times[:, None, None])


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """Logit-normal times [count] (Esser et al. 2024, section 3.1), one from each of `count` equal quantiles, in random order."""
    quantiles = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    quantiles = quantiles[torch.randperm(count, generator=generator)].clamp(1e-4, 1 - 1e-4)
    return torch.special.ndtri(quantiles).sigmoid()


def draw_batch(count: int, style: str | None, generator: torch.Generator) -> Batch:
    """`count` real training images with captions; with a `style` word, half of them have that style and say so."""
    images, labels = load_split("train")
    chosen = torch.randint(len(labels), (count,), generator=generator).numpy()
    styled = (torch.rand(count, generator=generator) < 0.5).numpy() & (style is not None)
    dropped = (torch.rand(count, generator=generator) < CAPTION_DROPOUT).tolist()
    frames = torch.randint(len(FRAMES), (count,), generator=generator).tolist()
    words = (style,) if style else ()
    pictures = np.where(styled[:, None, None], apply_styles(images[chosen], words), images[chosen])
    captions = [
        "" if drop else caption(int(labels[index]), words if is_styled else (), FRAMES[frame])
        for index, is_styled, drop, frame in zip(chosen, styled, dropped, frames, strict=True)
    ]
    clean = pack(pictures)
    noise = torch.randn(clean.shape, generator=generator)
    return Batch(clean, noise, stratified_times(count, generator), encode(captions))


def flow_loss(transformer: FluxTransformer2DModel, batch: Batch) -> Tensor:
    """Mean squared error to the velocity of the data, noise - clean (Lipman et al. 2023)."""
    predicted = velocity(transformer, batch.noisy, batch.times, batch.conditioning, GRID)
    return mse_loss(predicted, batch.noise - batch.clean)


def guidance_loss(
    student: FluxTransformer2DModel, teacher: FluxTransformer2DModel, batch: Batch, guidance: Tensor
) -> Tensor:
    """Mean squared error to the teacher's guided velocity v_u + g (v_c - v_u) (Meng et al. 2023), g = `guidance` [B].

    A student with a guidance embedder is told g.
    """
    told = guidance if student.config.guidance_embeds else None
    with torch.no_grad():
        conditional = velocity(teacher, batch.noisy, batch.times, batch.conditioning, GRID)
        empty = encode([""] * len(guidance))
        unconditional = velocity(teacher, batch.noisy, batch.times, empty, GRID)
        target = unconditional + guidance[:, None, None] * (conditional - unconditional)
    return mse_loss(velocity(student, batch.noisy, batch.times, batch.conditioning, GRID, told), target)
