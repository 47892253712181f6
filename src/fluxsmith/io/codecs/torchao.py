"""int8 weights of torchao, as diffusers saves them: one scale for every row (torchao/quantization/quantize_/workflows/int8).

What `save_pretrained` of diffusers 0.42.1 writes for `TorchAoConfig(Int8WeightOnlyConfig())` of torchao 0.18 (only its
version 2 is left): for every linear `X.weight`
    X._weight_qdata       I8  [out, in]   qdata
    X._weight_scale       F32 [out, 1]    absmax of the row / 127.5
    X._weight_zero_point  I8  [out, 1]    zeros: the mapping is symmetric
and in the header's metadata, beside `format: pt`, `tensor_names` (a JSON list of all tensors by their own names) and
for each of these names a JSON object: {"_type": "Tensor"} of plain tensors, and of quantised ones {"_type": "Int8Tensor",
"_data": {"act_quant_kwargs": null, "reduce_range": false, "block_size": [1, in], "dtype": {"_type": "torch.dtype",
"_data": "bfloat16"}}, "_tensor_data_names": ["zero_point", "qdata", "scale"]}. config.json has `quantization_config`
with quant_method "torchao", without which diffusers reads none of it.

    w = (float(qdata) - float(zero_point)) * scale
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.codecs.codec import Codec, Side
from fluxsmith.io.codecs.recognition import Recognised, bad_side, lone_extent, missing_half, not_read
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode", "recognise"]

_PART = re.compile(r"^(.*\.)_(weight|bias)_(qdata|scale|zero_point|act_quant_scale|act_quant_zero_point|act_pre_scale)$")
_TORCH_NAMES = {d.torch: d.name for d in DTYPES.values() if d.is_float}


def recognise(checkpoint: Checkpoint) -> Recognised | None:
    """The int8 weights of a checkpoint; None where it has nothing of torchao.

    Raises IncompatibleError naming the key where a weight lacks its scale, a scale its weight, or where torchao has
    stored something else (int4, float8, ...).
    """
    parts: dict[str, dict[str, str]] = {}
    for key in checkpoint.tensors:
        if match := _PART.match(key):
            parts.setdefault(match[1] + match[2], {})[match[3]] = key
    listed = {name: fields for name in checkpoint.metadata if (fields := _fields(checkpoint, name)).get("_type", "Tensor") != "Tensor"}
    for name, fields in listed.items():
        if fields["_type"] != "Int8Tensor":
            raise not_read(checkpoint, f"torchao's {fields['_type']}", name, len(listed))
    if not parts and not listed:
        return None
    found = Recognised("torchao int8 (a scale for every row)")
    for name in dict.fromkeys((*listed, *parts)):
        _recognise_weight(checkpoint, name, parts.get(name, {}), listed.get(name, {}), found)
    return found


def _fields(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """What the metadata say of a tensor: a JSON object with its kind; empty for metadata that say something else."""
    text = checkpoint.metadata[name]
    if not text.startswith('{"_type"'):
        return {}
    try:
        return cast("dict[str, Any]", json.loads(text))
    except (ValueError, RecursionError):
        raise bad_side(checkpoint, name, "JSON in the metadata", text[:80]) from None


def _recognise_weight(checkpoint: Checkpoint, name: str, parts: Mapping[str, str], fields: Mapping[str, Any], found: Recognised) -> None:
    """Add one weight to what is found."""
    stem = name[: name.rindex(".") + 1] + "_" + name[name.rindex(".") + 1 :]
    for part, what in (("qdata", "its numbers"), ("scale", "its scale")):
        if part not in parts:
            raise missing_half(checkpoint, next(iter(parts.values()), name), f"{stem}_{part}", what)
    if "act_pre_scale" in parts:
        raise not_read(checkpoint, "torchao's int8 with scaled inputs (SmoothQuant, AWQ)", parts["act_pre_scale"], 1)
    stored = checkpoint.tensors[parts["qdata"]]
    if stored.dtypes != {"I8"}:
        raise not_read(checkpoint, f"torchao's {'/'.join(sorted(stored.dtypes))}", parts["qdata"], 1)
    columns, rows = prod(stored.shape[1:]), stored.shape[0] if stored.shape else 1
    sides = [Side(part, _side(checkpoint, parts[part], rows), columns) for part in ("scale", "zero_point") if part in parts]
    found.sides |= {parts[side.name] for side in sides}
    found.dropped |= {key: "activation scale" for part, key in parts.items() if part.startswith("act_")}
    codec = Codec("torchao", "int8", stored.count, columns, columns, columns, tuple(sides))
    plain = lone_extent(stored)
    found.views[name] = View(stored.shape, (Extent(plain.file, plain.offset, stored.count, _dtype(fields), codec),))
    found.replaces[parts["qdata"]] = name


def _dtype(fields: Mapping[str, Any]) -> str:
    """The type that the values had."""
    try:
        return _TORCH_NAMES[fields["_data"]["dtype"]["_data"]]
    except (KeyError, TypeError):
        return "BF16"


def _side(checkpoint: Checkpoint, key: str, rows: int) -> Extent:
    view = checkpoint.tensors[key]
    if view.count != rows:
        raise bad_side(checkpoint, key, f"[{rows}, 1], a scale for every row", list(view.shape))
    return lone_extent(view)


def decode(stored: Tensor, out: Tensor, codec: Codec, sides: Mapping[str, Tensor], start: int) -> None:
    """Fill `out` with the values of whole rows."""
    import torch

    rows = out.view(-1, codec.columns)
    rows.copy_(stored.view(torch.int8).view_as(rows))
    if "zero_point" in sides:
        rows.sub_(sides["zero_point"].float().view(-1, 1))
    rows.mul_(sides["scale"].float().view(-1, 1))
