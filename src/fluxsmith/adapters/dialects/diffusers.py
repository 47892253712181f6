"""diffusers: `save_lora_weights` of a pipeline (`transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, text encoders after
`text_encoder.`, `text_encoder_2.`) and `save_lora_adapter` of a model (no prefix).

The scale stands in the header, as JSON with PEFT's fields (`transformer.r`, `transformer.lora_alpha`, ...); in old files it
is nowhere, and 1. Programs that read tensors alone apply all of these at scale 1: that the same file has two strengths is
said. Rarely there is an alpha. Older names: `lora.down.weight`, `processor.to_q_lora.down.weight`, `lora_linear_layer.up.weight`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from fluxsmith.adapters.dialects.base import MAIN, Dialect, Draft, Key, by_prefix, default_settings
from fluxsmith.adapters.dialects.peft import without_adapter_name
from fluxsmith.adapters.dialects.peft_rules import peft_settings
from fluxsmith.adapters.dialects.writing import Writing
from fluxsmith.adapters.module import Module
from fluxsmith.adapters.reading.sidecars import DIFFUSERS as HEADER
from fluxsmith.adapters.reading.sidecars import Sidecar, SidecarError

__all__ = ["DIFFUSERS_MODEL", "DIFFUSERS_PIPELINE"]

# What diffusers called the factors before it used PEFT: of attention processors, and of text encoders.
_OLD_PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_OLD_LAYER = re.compile(r"(.+)\.lora_linear_layer\.(down|up)\.weight")
_IN_PROCESSOR = re.compile(r"(.+)\.processor\.(to_\w+(?:\.0)?|add_\w+_proj)\.(.+)")


def _parse(dialect: Dialect, key: str) -> Key | None:
    plain = _modern(without_adapter_name(key))
    parsed = by_prefix(dialect, plain)
    if parsed is None:
        return None
    # The second text encoder is T5 of FLUX, CLIP-G of Stable Diffusion: their modules' names tell.
    t5 = parsed.component != MAIN and parsed.name.startswith("encoder.block.")
    component = "t5" if t5 else parsed.component
    layouts = dialect.layouts if component == MAIN else ()
    return replace(parsed, component=component, layouts=layouts, label=plain.removesuffix(f".{parsed.role}"))


def _modern(key: str) -> str:
    """A key of any version of diffusers as it is written now."""
    old = _OLD_PROCESSOR.fullmatch(key)
    if old is not None:
        module, which, factor = old.groups()
        text = module.endswith(".self_attn")
        name = f"{which}_proj" if text else "to_out.0" if which == "out" else f"to_{which}"
        return f"{module}.{name}.lora_{'A' if factor == 'down' else 'B'}.weight"
    old = _OLD_LAYER.fullmatch(key)
    if old is not None:
        return f"{old[1]}.lora_{'A' if old[2] == 'down' else 'B'}.weight"
    inside = _IN_PROCESSOR.fullmatch(key)
    return ".".join(inside.groups()) if inside else key


def _described(sidecar: Sidecar, part: str) -> dict[str, Any]:
    """The fields that the header has for one part of a pipeline (none: for the model), by PEFT's names."""
    fields = cast("Mapping[str, Any]", sidecar.get(HEADER) or {})
    return {name.removeprefix(part): value for name, value in fields.items() if name.startswith(part)}


def _numbers(draft: Draft, sidecar: Sidecar, part: str) -> Mapping[str, float]:
    config = _described(sidecar, part)
    if not config:
        return default_settings(draft)
    found = peft_settings(draft, draft.name.removeprefix(part), config)
    numbers = (draft.partner or draft).numbers
    if "alpha" in numbers and default_settings(draft)["scale"] != found["scale"]:
        raise SidecarError(
            "adapter.sidecar-contradicts",
            f"`{draft.name}` has an alpha that its header contradicts",
            facts={"alpha": numbers["alpha"], "header": f"scale {found['scale']:g}"},
            fix="write the file again with one of the two",
        )
    return found


def _pipeline_settings(draft: Draft, sidecar: Sidecar) -> Mapping[str, float]:
    return _numbers(draft, sidecar, draft.name.partition(".")[0] + ".")


def _model_settings(draft: Draft, sidecar: Sidecar) -> Mapping[str, float]:
    return _numbers(draft, sidecar, "")


def _remark(modules: Sequence[Module], sidecar: Sidecar) -> str:
    bare = [module for module in modules if "alpha" not in module.settings]
    if HEADER in sidecar and any(module.settings["scale"] != 1 for module in bare):
        return f"the scale is that of {HEADER} in the header, as in diffusers; programs that do not read it apply the file at scale 1"
    if HEADER not in sidecar and bare:
        return "neither an alpha nor a header says the scale: it is 1, as in diffusers"
    return ""


DIFFUSERS_PIPELINE = Dialect(
    name="diffusers",
    title="diffusers save_lora_weights",
    prefixes={
        MAIN: ("transformer.", "unet."), "clip_l": ("text_encoder.",), "clip_g": ("text_encoder_2.",), "t5": ("text_encoder_3.",),
    },
    layouts=("diffusers",),
    parse=_parse,
    settings=_pipeline_settings,
    remark=_remark,
    writing=Writing("diffusers", ("lora", "dora"), "header"),
)  # fmt: skip

DIFFUSERS_MODEL = replace(
    DIFFUSERS_PIPELINE, name="diffusers-model", title="diffusers save_lora_adapter", prefixes={MAIN: ("",)}, settings=_model_settings
)
