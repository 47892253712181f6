"""PEFT's `save_pretrained`: a folder with adapter_config.json and `base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight`.

Names are those of whatever was wrapped: diffusers' mostly, or the original ones. Nothing in the file says the scale,
only the config does. Raw state dicts have the adapter's name after the factor's (`lora_A.default.weight`). A bias or a
whole layer that was trained, too (`bias`, `modules_to_save`), takes the place of the base's.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Draft, Key, by_prefix, default_settings
from fluxsmith.adapters.dialects.peft_rules import SCALED, peft_settings
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.adapters.reading.sidecars import PEFT as CONFIG
from fluxsmith.adapters.reading.sidecars import Sidecar, SidecarError
from fluxsmith.io.checkpoint import ADAPTER_CONFIG

__all__ = ["PEFT", "without_adapter_name"]

_PREFIX = "base_model.model."

# A factor's name, the adapter's, and what comes after it.
_LAYERS = re.compile(r"(.+\.(?:lora_A|lora_B|oft_R))\.[^.]+(\.(?:weight|bias))")
_PARAMETERS = re.compile(r"(.+\.(?:lora_magnitude_vector|hada_\w+|lokr_\w+|boft_[Rs]|ia3_l))\.[^.]+(?:\.weight)?")
_FACTOR = re.compile(r".+\.(?:lora_[AB]|oft_R|lora_magnitude_vector)\.(?:weight|bias)")
_WHOLE = re.compile(r"(.+)\.(weight|bias)")
_SAVED = re.compile(r"(.+)\.modules_to_save\.[^.]+(\.\w+)")

_ENCODERS = (("text_model.", "clip_l"), ("encoder.layers.", "clip_l"), ("encoder.block.", "t5"))


def without_adapter_name(key: str) -> str:
    """The key as PEFT saves it, of a raw state dict's: without the adapter's name and the wrappers'."""
    for pattern in (_LAYERS, _PARAMETERS, _SAVED):
        found = pattern.fullmatch(key)
        if found is not None:
            return "".join(group or "" for group in found.groups())
    return key.replace(".base_layer.", ".")


def _parse(dialect: Dialect, key: str) -> Key | None:
    plain = without_adapter_name(key)
    whole = None if _FACTOR.fullmatch(plain) else _WHOLE.fullmatch(plain)
    if whole is not None:
        plain = f"{whole[1]}.set_{whole[2]}"
    parsed = by_prefix(dialect, plain)
    if parsed is None:
        return None
    component = next((component for start, component in _ENCODERS if parsed.name.startswith(start)), MAIN)
    return replace(parsed, component=component, label=plain.removesuffix(f".{parsed.role}"))


def _settings(draft: Draft, sidecar: Sidecar) -> Mapping[str, float]:
    config = sidecar.get(CONFIG)
    if config is not None:
        return peft_settings(draft, draft.name.removeprefix(_PREFIX), config)
    algorithm = (draft.partner or draft).algorithm
    if "alpha" in (draft.partner or draft).numbers or algorithm not in (*SCALED, "oft", "ia3"):
        return default_settings(draft)
    raise SidecarError(
        "adapter.missing-sidecar",
        f"there is no {ADAPTER_CONFIG} beside it, which alone says how strong it is",
        facts={"expected": f"{ADAPTER_CONFIG} in the same folder"},
        fix=f"download {ADAPTER_CONFIG} of the same repository, too, and give the folder; "
        "or apply it with --alpha NUMBER (in a recipe `alpha: NUMBER`)",
    )


PEFT = Dialect(
    name="peft",
    title="PEFT save_pretrained",
    prefixes={MAIN: (_PREFIX,)},
    parse=_parse,
    settings=_settings,
    writing=Writing("diffusers", ("lora", "dora", "loha"), "config", folder=True),
)
