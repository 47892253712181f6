"""kohya's sd-scripts OFT for FLUX.1: `oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0`.

A fused matrix is rotated in parts: there is one tensor of blocks for each of q, k, v (and the MLP of linear1), and one
alpha for all of them, which is the constraint (times a part's rows) on the norm of the rotation. Blocks are those of
LyCORIS' diag-OFT, on rows.
"""

import re

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Key

__all__ = ["KOHYA_OFT"]

_KEY = re.compile(r"oft_unet_(\w+)\.(?:oft_blocks\.(\d+)|(alpha))")
# The modules whose parts have blocks of their own; of all others the list has one entry.
_FUSED = re.compile(r"double_blocks_\d+_(img|txt)_attn_qkv|single_blocks_\d+_linear1")


def _parse(dialect: Dialect, key: str) -> Key | None:
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    name, number, alpha = found.groups()
    parts = (int(number), int(number)) if number and _FUSED.fullmatch(name) else None
    if number and parts is None and number != "0":
        return None
    label = f"oft_unet_{name}" + (f".oft_blocks.{number}" if parts else "")
    return Key(MAIN, name, alpha or "oft_blocks", parts, True, dialect.layouts, label)


KOHYA_OFT = Dialect(
    name="kohya-oft",
    title="kohya sd-scripts OFT, split in q, k, v",
    prefixes={MAIN: ("oft_unet_",)},
    joined=True,
    layouts=("bfl",),
    families=("flux1",),
    vocabulary="lycoris",
    parse=_parse,
)
