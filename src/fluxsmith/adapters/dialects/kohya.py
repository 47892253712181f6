"""kohya's sd-scripts and LyCORIS (also Forge, InvokeAI and most of Civitai): `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`.

Modules are those of the original layout, fused, with `_` for `.`. The scale is alpha over rank; a missing alpha is the rank.
Text encoders: `lora_te1_` is CLIP-L, `lora_te2_` CLIP-G, `lora_te3_` T5; Stable Diffusion 1.5 has `lora_te_` alone.
Files that were trained with `split_qkv` are told by their values: see split_qkv.py.
"""

from fluxsmith.adapters.dialects.base import MAIN, Dialect
from fluxsmith.adapters.dialects.split_qkv import split_qkv_note
from fluxsmith.adapters.dialects.writing import Writing

__all__ = ["KOHYA"]

KOHYA = Dialect(
    name="kohya",
    title="kohya sd-scripts, LyCORIS",
    prefixes={MAIN: ("lora_unet_",), "clip_l": ("lora_te1_", "lora_te_"), "clip_g": ("lora_te2_",), "t5": ("lora_te3_",)},
    joined=True,
    vocabulary="lycoris",
    notice=split_qkv_note,
    writing=Writing(
        "original",
        ("lora", "dora", "loha", "lokr", "diff", "oft", "boft", "ia3", "glora"),
        other_layouts={"sd15": "diffusers"},
    ),
)
