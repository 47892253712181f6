"""OneTrainer's old files ("mixture"): `lora_transformer_single_transformer_blocks_0_proj_mlp.lora_down.weight`.

Names are those of diffusers with `_` for `.`, split. Of FLUX.1's text encoders `lora_te1_` is CLIP-L and `lora_te2_` T5; of
Stable Diffusion 3 `lora_te2_` is CLIP-G and `lora_te3_` T5, and Chroma's T5 is `lora_te_`: the module's name decides.
`dora_scale` is [1, in].
"""

from dataclasses import replace

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Key, by_prefix
from fluxsmith.adapters.dialects.writing import Writing

__all__ = ["ONETRAINER"]


def _parse(dialect: Dialect, key: str) -> Key | None:
    parsed = by_prefix(dialect, key)
    if parsed is not None and parsed.component != MAIN:
        t5 = parsed.name.startswith("encoder_block_")
        component = "t5" if t5 else "clip_g" if key.startswith("lora_te2_") else "clip_l"
        return replace(parsed, component=component, layouts=())
    return parsed


ONETRAINER = Dialect(
    name="onetrainer",
    title="OneTrainer, legacy (diffusers names joined by _)",
    prefixes={
        MAIN: ("lora_transformer_",),
        "clip_l": ("lora_te1_", "lora_te_"),
        "clip_g": ("lora_te2_",),
        "t5": ("lora_te2_", "lora_te3_"),
    },
    joined=True,
    layouts=("diffusers",),
    vocabulary="lycoris",
    parse=_parse,
    writing=Writing("diffusers", ("lora", "dora", "loha", "oft")),
)
