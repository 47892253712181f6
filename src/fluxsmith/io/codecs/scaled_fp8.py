"""fp8 weights with scales, in three conventions that differ in names and in how many weights share a scale.

    ComfyUI, older    X.scale_weight, beside `[prefix]scaled_fp8`     one scale
    ComfyUI, newer    X.weight_scale, beside X.comfy_quant (JSON as U8, {"format": "float8_e4m3fn"}) or a list of layers
                      in the header's metadata (`_quantization_metadata`); X.weight_scale_2 is a second factor, and
                      X.pre_quant_scale [in] a factor of the layer's input        (QUANTIZATION.md of ComfyUI)
    sd-scripts        X.scale_weight [], [out, 1] or [out, blocks, 1]: one scale, one for every row, or one for every
                      block of a row

    w = float(stored) * scale (* scale_2) (* pre_quant_scale of the column)
since a layer computes (x * pre_quant_scale) @ stored^T. `X.scale_input` and `X.input_scale` are of activations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, cast

from fluxsmith.errors import IncompatibleError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.codecs.codec import Codec, Side
from fluxsmith.io.codecs.fp8 import values_of_fp8
from fluxsmith.io.codecs.recognition import (
    FIX,
    Recognised,
    bad_side,
    contents,
    is_remote,
    lone_extent,
    missing_half,
    not_read,
    with_suffix,
)
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.numbers import read_number
from fluxsmith.io.views import View

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode", "recognise"]

SCALES = (".scale_weight", ".weight_scale")
INPUTS = (".scale_input", ".input_scale")
#: The formats of ComfyUI that are scaled fp8, by the element type.
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
_METADATA = "_quantization_metadata"
_EMBEDDING = re.compile(r"(^|\.)(shared|embed_tokens|\w+_embedding|relative_attention_bias)\.weight$")
# The components of a bundle, of which one may be scaled and another plain.
_COMPONENT = re.compile(r"^(text_encoders\.[^.]+|model|diffusion_model|vae|first_stage_model|cond_stage_model|conditioner|[^/.]+/)\b")


def recognise(checkpoint: Checkpoint) -> Recognised | None:
    """The scaled weights of a checkpoint; None where it has none.

    Raises IncompatibleError naming the key where a scale has no weight, an fp8 weight of a scaled component has no
    scale, a scale does not fit its weight, or a layer is in another format of ComfyUI.
    """
    tensors = checkpoint.tensors
    formats = _formats(checkpoint)
    scales = {layer: key for layer, key in with_suffix(tensors, SCALES) if not _is_other_scheme(tensors, layer)}
    marks = [key for key in tensors if key == "scaled_fp8" or key.endswith((".scaled_fp8", "/scaled_fp8"))]
    if not scales and not marks and not formats:
        return None
    found = Recognised("scaled fp8")
    found.sides |= {*marks, *scales.values(), *(key for _, key in with_suffix(tensors, (".comfy_quant",)))}
    for layer, key in scales.items():
        weight = f"{layer}.weight"
        if weight not in tensors:
            raise missing_half(checkpoint, key, weight, "its weight")
        if not _is_unscaled(checkpoint, weight, key):
            found.views[weight] = _view(checkpoint, layer, key, formats.get(layer), found)
    for layer in formats:
        if f"{layer}.weight" not in tensors:
            raise missing_half(checkpoint, f"{layer}.comfy_quant", f"{layer}.weight", "its weight")
        if layer not in scales:
            raise missing_half(checkpoint, f"{layer}.weight", f"{layer}.weight_scale", "its scale")
    for layer, key in with_suffix(tensors, INPUTS):
        if f"{layer}.weight" in tensors:
            found.dropped[key] = "activation scale"
    _check_unscaled(checkpoint, found, marks)
    return replace(found, scheme=f"scaled fp8 ({_convention(checkpoint, marks, formats)})")


def _is_other_scheme(tensors: Mapping[str, View], layer: str) -> bool:
    """torchao's names end alike."""
    return f"{layer}._weight_qdata" in tensors or layer.endswith("._weight")


def _convention(checkpoint: Checkpoint, marks: list[str], formats: Mapping[str, str]) -> str:
    if formats or any(key.endswith(".weight_scale") for key in checkpoint.tensors):
        return "ComfyUI"
    return "ComfyUI, older" if marks else "sd-scripts"


def _formats(checkpoint: Checkpoint) -> dict[str, str]:
    """The format of every layer that says one, by its name; raises IncompatibleError at one that is not scaled fp8."""
    found: dict[str, str] = {}
    for layer, key in with_suffix(checkpoint.tensors, (".comfy_quant",)):
        weight = checkpoint.tensors.get(f"{layer}.weight")
        if is_remote(checkpoint) and weight is not None and weight.dtypes <= set(_EIGHT_BITS):
            found[layer] = next(iter(weight.dtypes))  # its type tells; what the mark says is read after the download
        else:
            found[layer] = _format_of(checkpoint, key, contents(checkpoint, key))
    for layer, fields in _listed(checkpoint).items():
        found.setdefault(_full_name(checkpoint, layer), _known_format(checkpoint, _METADATA, fields))
    return found


def _full_name(checkpoint: Checkpoint, layer: str) -> str:
    """A listed layer as the file names it: some writers leave the prefix of the model out of the list."""
    if f"{layer}.weight" in checkpoint.tensors:
        return layer
    return next((key.removesuffix(".weight") for key in checkpoint.tensors if key.endswith(f".{layer}.weight")), layer)


def _listed(checkpoint: Checkpoint) -> dict[str, Any]:
    """The layers that the header's metadata list."""
    text = checkpoint.metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        return dict(json.loads(text)["layers"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise bad_side(checkpoint, _METADATA, 'JSON with "layers" in the metadata', text[:80]) from None


def _format_of(checkpoint: Checkpoint, key: str, raw: bytes) -> str:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise bad_side(checkpoint, key, 'JSON as U8, {"format": ...}', raw[:40]) from None
    return _known_format(checkpoint, key, fields)


def _known_format(checkpoint: Checkpoint, key: str, fields: object) -> str:
    """The element type of a layer's format."""
    name = cast("dict[str, object]", fields).get("format") if isinstance(fields, dict) else fields
    if str(name) not in FORMATS:
        raise not_read(checkpoint, f"ComfyUI's {name}", key, 1)
    return FORMATS[str(name)]


def _is_unscaled(checkpoint: Checkpoint, weight: str, key: str) -> bool:
    """Whether a weight with a scale is stored as it is: then the scale is 1, as some writers give one to every layer.

    Raises IncompatibleError where it is not: half of such a file has been converted, and nobody knows which half.
    """
    view = checkpoint.tensors[weight]
    if view.coded or not all(DTYPES[dtype].is_float and DTYPES[dtype].bits > 8 for dtype in view.dtypes):
        return False
    if is_remote(checkpoint) or read_number(checkpoint.tensors[key]) == 1:
        return True
    raise IncompatibleError(
        "quantised.plain-weight",
        f"`{weight}` of {checkpoint.reference} has a scale, but is not stored in fp8",
        facts={"file": checkpoint.reference, "key": key, "expected": "F8_E4M3 or F8_E5M2", "found": ", ".join(sorted(view.dtypes))},
        fix=FIX,
    )


def _view(checkpoint: Checkpoint, layer: str, key: str, kind: str | None, found: Recognised) -> View:
    """A weight as a view of its values."""
    stored = checkpoint.tensors[f"{layer}.weight"]
    dtype = next(iter(stored.dtypes))
    kind = kind if kind and dtype == "U8" else dtype  # a container of bytes, whose format says what they are
    if kind not in _EIGHT_BITS:
        raise not_read(checkpoint, f"{dtype} with scales, in a format that no key names", f"{layer}.weight", 1)
    columns = prod(stored.shape[1:])
    sides = [Side("scale", lone_extent(checkpoint.tensors[key]), _every(checkpoint, key, stored))]
    for name in ("weight_scale_2", "pre_quant_scale"):
        other = f"{layer}.{name}"
        if other in checkpoint.tensors:
            sides.append(_factor(checkpoint, other, name, stored, columns))
            found.sides.add(other)
    whole_rows = any(side.name == "pre_quant_scale" for side in sides)
    block = columns if whole_rows else max((side.every for side in sides), default=0) or 1
    codec = Codec("scaled_fp8", kind, stored.count, columns, block, block, tuple(sides))
    plain = lone_extent(stored)
    return View(stored.shape, (replace(plain, dtype="BF16", codec=codec),))


def _factor(checkpoint: Checkpoint, key: str, name: str, stored: View, columns: int) -> Side:
    """A second factor: of the columns, or as scales are."""
    view = checkpoint.tensors[key]
    if name != "pre_quant_scale":
        return Side("scale_2", lone_extent(view), _every(checkpoint, key, stored))
    if view.count != columns:
        raise bad_side(checkpoint, key, f"[{columns}], one for every column", list(view.shape))
    return Side(name, lone_extent(view))


def _every(checkpoint: Checkpoint, key: str, stored: View) -> int:
    """How many elements share a value of a scale: 0 for all, a row, or a block of a row."""
    scale, rows = checkpoint.tensors[key], stored.shape[0] if stored.shape else 1
    if scale.coded or not all(DTYPES[dtype].is_float for dtype in scale.dtypes):
        raise bad_side(checkpoint, key, "a float type", ", ".join(sorted(scale.kinds)))
    if scale.count == 1:
        return 0
    columns = prod(stored.shape[1:])
    blocks = scale.count // rows if rows else 0
    fits = scale.shape[:1] == (rows,) and blocks and scale.count == rows * blocks and columns % blocks == 0
    if not fits:
        raise bad_side(checkpoint, key, f"[], [{rows}, 1] or [{rows}, blocks, 1] for a weight of {list(stored.shape)}", list(scale.shape))
    return columns // blocks


def _check_unscaled(checkpoint: Checkpoint, found: Recognised, marks: list[str]) -> None:
    """In a component that has scales, every fp8 layer must have one: values 5000 times too large look like weights.

    Embeddings and convolutions have none in ComfyUI: where they are fp8, they are plain.
    """
    scopes = {_scope(key) for key in (*found.views, *marks)}
    for key, view in checkpoint.tensors.items():
        matrix = key.endswith(".weight") and len(view.shape) == 2 and not _EMBEDDING.search(key)
        if matrix and key not in found.views and not view.coded and view.dtypes & set(_EIGHT_BITS) and _scope(key) in scopes:
            suffix = ".weight_scale" if any(side.endswith(".weight_scale") for side in found.sides) else ".scale_weight"
            raise missing_half(checkpoint, key, key.removesuffix(".weight") + suffix, "its scale")


def _scope(key: str) -> str:
    """The component of a bundle that a key stands in."""
    match = _COMPONENT.match(key)
    return match[1] if match else ""


def decode(stored: Tensor, out: Tensor, codec: Codec, sides: Mapping[str, Tensor], start: int) -> None:
    """Fill `out` with the values of whole blocks."""
    import torch

    kind: torch.dtype = getattr(torch, str(DTYPES[codec.kind].torch))
    if DTYPES[codec.kind].bits == 8:
        values_of_fp8(stored, kind, out)
    else:
        out.copy_(stored.view(kind))
    for name in ("scale", "scale_2"):
        if name in sides:
            scale = sides[name].float().reshape(-1, 1)
            out.view(len(scale), -1).mul_(scale)
    if "pre_quant_scale" in sides:
        out.view(-1, codec.columns).mul_(sides["pre_quant_scale"].float())
