"""XLabs' x-flux: `double_blocks.0.processor.qkv_lora1.down.weight` (1 is the image's stream, 2 the text's).

In single blocks `qkv_lora` changes the rows of q, k and v in linear1, not those of the MLP, and `proj_lora` is linear2.
There is no alpha: the scale is 1.
"""

import re

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Key
from fluxsmith.adapters.dialects.writing import Parts, Writing
from fluxsmith.layouts.table import Canonical

__all__ = ["XLABS"]

_KEY = re.compile(r"(?:diffusion_model\.)?((double|single)_blocks\.\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight")
_STREAMS = {"1": "img", "2": "txt"}


def _parse(dialect: Dialect, key: str) -> Key | None:
    found = _KEY.fullmatch(key)
    if found is None or (found[2] == "double") != bool(found[4]):
        return None
    block, kind, which, stream, factor = found.groups()
    parts = None
    if kind == "double":
        name = f"{block}.{_STREAMS[stream]}_attn.{which}"
    else:
        name, parts = (f"{block}.linear1", (0, 2)) if which == "qkv" else (f"{block}.linear2", None)
    return Key(MAIN, name, f"lora_{factor}.weight", parts, False, dialect.layouts, key.removesuffix(f".{factor}.weight"))


def _divide(tensor: Canonical) -> tuple[Parts, ...]:
    """Of linear1 the rows of q, k and v."""
    return ((0, 2) if tensor.name.endswith("linear1.weight") else None,)


def _spell(prefix: str, key: Key) -> str:
    """The inverse of _parse: `lora_A.weight` is `down`."""
    kind, number, *rest = key.name.split(".")
    stream = "" if kind == "single_blocks" else "1" if rest[0] == "img_attn" else "2"
    which = {"linear1": "qkv", "linear2": "proj"}.get(rest[-1], rest[-1])
    factor = {"lora_A.weight": "down", "lora_B.weight": "up"}[key.role]
    return f"{kind}.{number}.processor.{which}_lora{stream}.{factor}.weight"


XLABS = Dialect(
    name="xlabs",
    title="XLabs x-flux",
    prefixes={MAIN: ("",)},
    layouts=("bfl",),
    families=("flux1",),
    parse=_parse,
    writing=Writing(
        "original", ("lora",), "nowhere", _spell, _divide,
        only=r"^double_blocks\.\d+\.\w+_attn\.(qkv|proj)\.weight$|^single_blocks\.\d+\.linear[12]\.weight$",
    ),
)  # fmt: skip
