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

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fluxsmith.io.codecs.codec import Codec

__all__ = ["decode"]


def decode(stored: Tensor, out: Tensor, codec: Codec, sides: Mapping[str, Tensor], start: int) -> None:
    """Fill `out` with the values of whole rows."""
    import torch

    rows = out.view(-1, codec.columns)
    rows.copy_(stored.view(torch.int8).view_as(rows))
    if "zero_point" in sides:
        rows.sub_(sides["zero_point"].float().view(-1, 1))
    rows.mul_(sides["scale"].float().view(-1, 1))
