"""ComfyUI's names: `diffusion_model.` before those of either layout (ai-toolkit for FLUX.2 and Chroma, diffusion-pipe,
OneTrainer's COMFY), `text_encoders.` before text encoders.

The scale is alpha over rank where there is an alpha, else 1. A control adapter may widen `img_in`; its norms take the place
of the base's (`query_norm.set_weight`, also written `query_norm.scale.set_weight`).
"""

from dataclasses import replace

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Key, by_prefix
from fluxsmith.adapters.dialects.writing import Writing

__all__ = ["COMFY"]


def _parse(dialect: Dialect, key: str) -> Key | None:
    parsed = by_prefix(dialect, key)
    if parsed is not None and parsed.role == "set_weight":
        return replace(parsed, name=parsed.name.removesuffix(".scale"))
    return parsed


COMFY = Dialect(
    name="comfy",
    title="ComfyUI, ai-toolkit (FLUX.2, Chroma), diffusion-pipe, OneTrainer COMFY",
    prefixes={
        MAIN: ("diffusion_model.",),
        "clip_l": ("text_encoders.clip_l.transformer.", "text_encoders.clip_l."),
        "clip_g": ("text_encoders.clip_g.transformer.", "text_encoders.clip_g."),
        "t5": ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."),
    },
    parse=_parse,
    widens=("img_in",),
    writing=Writing("original", ("lora", "dora", "loha", "lokr", "diff", "oft", "boft", "glora"), borrows=True),
)
