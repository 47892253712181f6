"""kohya's sd-scripts and LyCORIS (also Forge, InvokeAI and most of Civitai): `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`.

Modules are those of the original layout, fused, with `_` for `.`. The scale is alpha over rank; a missing alpha is the rank.
Text encoders: `lora_te1_` is CLIP-L, `lora_te2_` CLIP-G, `lora_te3_` T5; Stable Diffusion 1.5 has `lora_te_` alone.
"""

from fluxsmith.adapters.dialects.base import MAIN, Dialect

__all__ = ["KOHYA"]

KOHYA = Dialect(
    name="kohya",
    title="kohya sd-scripts, LyCORIS",
    prefixes={MAIN: ("lora_unet_",), "clip_l": ("lora_te1_", "lora_te_"), "clip_g": ("lora_te2_",), "t5": ("lora_te3_",)},
    joined=True,
    vocabulary="lycoris",
)
