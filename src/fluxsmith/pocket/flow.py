"""The two losses of the pocket checkpoints: flow matching on data, and guidance distillation from a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fluxsmith.pocket.batches import Batch
from fluxsmith.pocket.captions import encode
from fluxsmith.pocket.digits import GRID
from fluxsmith.pocket.forward import velocity

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["flow_loss", "guidance_loss"]


def flow_loss(transformer: FluxTransformer2DModel, batch: Batch) -> Tensor:
    """Mean squared error to the velocity of the data, noise - clean (Lipman et al. 2023, "Flow Matching", eq. 23)."""
    predicted = velocity(transformer, batch.noisy, batch.times, batch.conditioning, GRID)
    return mse_loss(predicted, batch.noise - batch.clean)


def guidance_loss(student: FluxTransformer2DModel, teacher: FluxTransformer2DModel, batch: Batch, guidance: Tensor) -> Tensor:
    """Mean squared error to the teacher's guided velocity v_u + g (v_c - v_u), g = `guidance` [B] (Meng et al. 2023, stage one).

    A student with a guidance embedder is told g; one without learns to act as if it were always g.
    """
    with torch.no_grad():
        conditional = velocity(teacher, batch.noisy, batch.times, batch.conditioning, GRID)
        unconditional = velocity(teacher, batch.noisy, batch.times, encode([""] * len(guidance)), GRID)
        target = unconditional + guidance[:, None, None] * (conditional - unconditional)
    told = guidance if student.config.guidance_embeds else None
    return mse_loss(velocity(student, batch.noisy, batch.times, batch.conditioning, GRID, told), target)
