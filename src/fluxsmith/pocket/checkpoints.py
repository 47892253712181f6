"""The pocket checkpoints that ship in the package, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fluxsmith.errors import UsageError
from fluxsmith.hub import pocket_folder

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["CHECKPOINTS", "LEARNED", "load_checkpoint"]

LEARNED = {
    "schnell": "inverted",
    "dev": "sideways",
    "framed": "framed",
    "faint": "faint",
    "swapped": "swapped",
    "slanted-left": "slanted-left",
    "slanted-right": "slanted-right",
}
"""The fine-tunes of the base, and the style that each obeys."""

CHECKPOINTS = ("base", *LEARNED)
"""In the order in which they are made."""


def load_checkpoint(name: str, folder: Path | None = None) -> FluxTransformer2DModel:
    """The checkpoint `name` as a stock transformer in float32, from the package or from another `folder` of checkpoints."""
    import torch

    try:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    except ImportError as error:
        raise UsageError("usage.missing-extra", f"{error.name} is not installed", fix="pip install 'fluxsmith[generate]'") from None

    place = (folder or pocket_folder()) / name / "transformer"
    return FluxTransformer2DModel.from_pretrained(str(place), torch_dtype=torch.float32, local_files_only=True).eval()
