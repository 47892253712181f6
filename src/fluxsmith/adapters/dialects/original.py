"""Names of the original layout without any prefix: `double_blocks.0.img_attn.qkv.lora_A.weight` (OneTrainer's ORIGINAL).

The scale is alpha over rank where there is an alpha, else 1.
"""

from fluxsmith.adapters.dialects.base import MAIN, Dialect
from fluxsmith.adapters.dialects.writing import Writing

__all__ = ["ORIGINAL"]

ORIGINAL = Dialect(
    name="original",
    title="original names without a prefix (OneTrainer ORIGINAL)",
    prefixes={MAIN: ("",)},
    layouts=("bfl", "ldm", "sgm", "original"),
    writing=Writing("original", ("lora", "dora", "loha", "lokr", "diff"), borrows=True),
)
