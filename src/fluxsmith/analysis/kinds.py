"""The words for what a file is: kinds of FLUX.1 by their shapes, other families and components by their keys.

Shapes and keys decide. Krea and Kontext have the shapes of dev, and a de-distilled model may have those of schnell:
a kind says what a checkpoint is shaped like, not who trained it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.quantised import QUANTISED
from fluxsmith.io.views import View
from fluxsmith.layouts.detection import FOREIGN
from fluxsmith.layouts.table import Dims

__all__ = [
    "FAMILY_NAMES",
    "block_of",
    "component_of",
    "flux1_kind",
    "foreign_kind",
    "in_order",
    "numbered_lists",
    "packed_keys",
    "scheme_of",
]

_MINI, _FULL, _EIGHT = (5, 10), (19, 38), (8, 38)

# Parts of a whole pipeline, by keys in an all-in-one file or in a file of their own. (name, what it is, pattern)
COMPONENTS: tuple[tuple[str, str, str], ...] = (
    ("clip_l", "a CLIP text encoder", r"^text_encoders\.clip|^lora_te1_|(^|\.)text_model\.(encoder|embeddings|final_layer_norm)\."),
    ("t5", "a T5 text encoder", r"^text_encoders\.t5|^lora_te3_|(^|\.)encoder\.block\.\d+\.layer\.|^shared\.weight$"),
    ("vae", "a VAE", r"^(vae|first_stage_model)\.|^(encoder|decoder)\.(down|up|mid|conv_|norm_out)|^(post_)?quant_conv\."),
)  # fmt: skip

# Schemes that are read, by keys of theirs, for files in which half of them is missing. (name, pattern)
_HALVES: tuple[tuple[str, str], ...] = (
    ("scaled fp8", r"(^|\.)scaled_fp8$|\.scale_weight$|\.weight_scale(_2)?$|\.comfy_quant$"),
    ("bitsandbytes 4-bit", r"\.quant_state\.bitsandbytes__|\.weight\.absmax$"),
    ("torchao", r"\._weight_(qdata|scale|zero_point)$"),
)

_SLUGS = {
    "a FLUX ControlNet": "controlnet", "an IP-Adapter": "ip-adapter", "FLUX.1 Redux": "redux", "an adapter (LoRA and its kin)": "adapter",
}  # fmt: skip

#: What people call the families.
FAMILY_NAMES = {"flux1": "FLUX.1", "flux2": "FLUX.2", "chroma": "Chroma", "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL", "sd3": "SD3"}


def flux1_kind(dims: Dims) -> tuple[str, str]:
    """The kind of a FLUX.1 transformer as a word for programs and in words for people.

    Widths that could not be told from a file are 0 in `dims`.
    """
    depth, channels = (dims.get("double", 0), dims.get("single", 0)), dims.get("in", 0)
    guidance = "guidance" if dims.get("guidance") else "no guidance"
    if depth == _MINI:
        return "mini", f"Flux-mini-shaped ({guidance}, 5 + 10 blocks)"
    if depth == _EIGHT:
        return "8-double", f"shaped as Flex.1 and lite-8B ({guidance}, 8 + 38 blocks)"
    if depth != _FULL:
        return "other", f"a size of its own ({guidance}, {depth[0]} + {depth[1]} blocks)"
    if channels == 384:
        return "fill", f"Fill-shaped ({guidance}, 384 input channels)"
    if channels == 128:
        return "canny-depth", f"Canny/Depth-shaped ({guidance}, 128 input channels)"
    if channels not in (0, 64):
        return "other", f"with {channels} input channels ({guidance})"
    return ("dev", "dev-shaped (guidance)") if dims.get("guidance") else ("schnell", "schnell-shaped (no guidance)")


def foreign_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """What a file is by keys that only such files have: (word, in words); None where no key says so."""
    keys = list(keys)
    for name, pattern, _ in FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            return _SLUGS.get(name, name), FAMILY_NAMES.get(name, name)
    counts = Counter(component_of(key) for key in keys)
    for name, what, _ in COMPONENTS:
        if counts[name] * 2 > len(keys):
            return name, what
    return None


def component_of(key: str) -> str:
    """The component that a key of an all-in-one file belongs to: clip_l, t5, vae or other."""
    return next((name for name, _, pattern in COMPONENTS if re.search(pattern, key)), "other")


def scheme_of(checkpoint: Checkpoint) -> str | None:
    """In what quantisation tensors are stored, in words; None for plain ones."""
    tensors = checkpoint.tensors
    if checkpoint.quantised is not None:
        coded = sum(view.coded for view in tensors.values())
        return f"{checkpoint.quantised.scheme}, {coded} of {len(tensors)} tensors"
    found = next((name for name, pattern in (*QUANTISED, *_HALVES) if any(re.search(pattern, key) for key in tensors)), None)
    if found is None and "_quantization_metadata" in checkpoint.metadata:
        return "scaled fp8 (ComfyUI)"
    eights = sorted({d for view in tensors.values() for d in view.dtypes if d.startswith(("F8_E4M3", "F8_E5M2"))})
    return found or (f"plain {' and '.join(eights)} without scales" if eights else None)


def packed_keys(tensors: Mapping[str, View]) -> tuple[set[str], set[str]]:
    """Of a quantised file whose values cannot be had: keys that hold no weights but scales and such, and weights whose
    stored shape is not theirs.
    """
    scales = {key for key in tensors for _, pattern in (*QUANTISED, *_HALVES) if re.search(pattern, key)}
    scales |= {key for key in tensors if re.search(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|input_scale|scale_input)$", key)}
    packed = {key for key, view in tensors.items() if key not in scales and view.dtypes & {"U8", "I8", "I32"}}
    return scales, packed


def block_of(key: str) -> str:
    """Where a key stands: its numbered list with the number (`double_blocks.3`), or else the first part of the name."""
    match = _NUMBERED.match(key)
    return f"{match[1]}.{match[2]}" if match else key.split(".")[0]


def numbered_lists(keys: Iterable[str]) -> dict[str, int]:
    """How many numbers each list of blocks has: {"double_blocks": 19, ...}."""
    found: dict[str, set[str]] = {}
    for key in keys:
        if match := _NUMBERED.match(key):
            found.setdefault(match[1], set()).add(match[2])
    return {name: len(numbers) for name, numbers in found.items()}


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys sorted with the numbers in them as numbers."""

    def numbers(key: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[._]", key)]

    return sorted(keys, key=numbers)


_NUMBERED = re.compile(r"^(.*?(?:blocks?|layers?|resblocks|down|up))[._](\d+)[._]")
