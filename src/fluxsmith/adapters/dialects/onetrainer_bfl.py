"""OneTrainer's files with Black Forest Labs' names: `transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight`.

It trains split matrices, so a fused one has a module for each part (q, k, v and the MLP): the number after its name.
`img_in` is called `img_in.proj`. Text encoders stand after `clip_l.` and `t5.`.
"""

import re
from dataclasses import replace

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Key, by_prefix
from fluxsmith.adapters.dialects.writing import Parts, Writing, spell_by_prefix
from fluxsmith.layouts.table import Canonical

__all__ = ["ONETRAINER_BFL"]

_PART = re.compile(r"(.*(?:_attn\.qkv|\.linear1))\.(\d)")


def _parse(dialect: Dialect, key: str) -> Key | None:
    parsed = by_prefix(dialect, key)
    if parsed is None or parsed.component != MAIN:
        return parsed and replace(parsed, layouts=())
    part = _PART.fullmatch(parsed.name)
    label = key.removesuffix(f".{parsed.role}")
    if part is not None:
        return replace(parsed, name=part[1], parts=(int(part[2]), int(part[2])), label=label)
    return replace(parsed, name="img_in", label=label) if parsed.name == "img_in.proj" else parsed


def _divide(tensor: Canonical) -> tuple[Parts, ...]:
    return tuple((i, i) for i in range(len(tensor.segments))) or (None,)


def _spell(prefix: str, key: Key) -> str:
    name = f"{key.name}.{key.parts[0]}" if key.parts else f"{key.name}.proj" if key.name == "img_in" else key.name
    return spell_by_prefix(prefix, replace(key, name=name))


ONETRAINER_BFL = Dialect(
    name="onetrainer-bfl",
    title="OneTrainer, BFL names with split parts",
    prefixes={MAIN: ("transformer.",), "clip_l": ("clip_l.",), "t5": ("t5.",)},
    layouts=("bfl",),
    families=("flux1", "chroma"),
    vocabulary="lycoris",
    parse=_parse,
    writing=Writing("original", ("lora", "dora"), spell=_spell, divide=_divide),
)
