"""Black Forest Labs' control adapters (FLUX.1 Canny and Depth dev LoRA): `double_blocks.0.img_attn.qkv.lora_A.weight`.

Names of the original layout; every linear layer has a `lora_B.bias`, too. Norms of q and k (`query_norm.scale`) are not
added but *take the place* of the base's. `img_in` has columns for the control image, by which the base is widened
with zeros. The scale is 1.
"""

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Key, by_prefix
from fluxsmith.adapters.dialects.writing import Writing

__all__ = ["BFL_CONTROL"]

_NORM = ("query_norm", "key_norm")


def _parse(dialect: Dialect, key: str) -> Key | None:
    name, _, suffix = key.rpartition(".")
    if suffix == "scale" and name.endswith(_NORM):
        return Key(MAIN, name, "scale", None, False, dialect.layouts)
    return by_prefix(dialect, key) if key.endswith((".lora_A.weight", ".lora_B.weight", ".lora_B.bias")) else None


BFL_CONTROL = Dialect(
    name="bfl-control",
    title="Black Forest Labs' control adapters (Canny, Depth)",
    prefixes={MAIN: ("",)},
    layouts=("bfl",),
    families=("flux1",),
    parse=_parse,
    widens=("img_in",),
    writing=Writing("original", ("lora", "replace"), "nowhere"),
)
