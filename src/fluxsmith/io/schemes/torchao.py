"""int8 weights with a scale per row: what diffusers saves of a model loaded with `TorchAoConfig(Int8WeightOnlyConfig())`.

A layer's `X.weight` is stored as `X._weight_qdata`, `X._weight_scale` (float32 [out, 1]: absmax / 127.5) and
`X._weight_zero_point` (zeros). The header's metadata have a line of JSON for every tensor, which says what it is made of,
and `tensor_names`; config.json has a `quantization_config` (torchao 0.18, diffusers 0.42).
"""

import json
from collections.abc import Sequence

from fluxsmith.io.schemes.scheme import Extra, Scheme, Shape, Stored, sibling

__all__ = ["SCHEMES"]


def _row(shape: Shape) -> int:
    return shape[1]


def _beside(weight: str, shape: Shape) -> tuple[Extra, ...]:
    zeros = Extra(sibling(weight, "_weight_zero_point"), "I8", (shape[0], 1), bytes(shape[0]))
    return Extra(sibling(weight, "_weight_scale"), "F32", (shape[0], 1)), zeros


def _metadata(tensors: Sequence[Stored]) -> dict[str, str]:
    found = {"tensor_names": json.dumps([name for name, _, _ in tensors])}
    for name, shape, quantised in tensors:
        found[name] = json.dumps(_int8(shape) if quantised else {"_type": "Tensor"})
    return found


def _int8(shape: Shape) -> dict[str, object]:
    data = {
        "act_quant_kwargs": None,
        "reduce_range": False,
        "block_size": [1, shape[1]],
        "dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
    }
    return {"_type": "Int8Tensor", "_data": data, "_tensor_data_names": ["zero_point", "qdata", "scale"]}


_PER_ROW = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
_INT8_WEIGHT_ONLY = {
    "_type": "Int8WeightOnlyConfig",
    "_version": 2,
    "_data": {"granularity": _PER_ROW, "group_size": None, "set_inductor_config": True},
}

SCHEMES = (
    Scheme(
        "int8_torchao",
        "I8",
        "torchao's int8 weights: a scale per row, for diffusers",
        container="diffusers",
        per=_row,
        beside=_beside,
        rename=lambda weight: sibling(weight, "_weight_qdata"),
        metadata=_metadata,
        config={
            "quantization_config": {
                "quant_method": "torchao",
                "quant_type": {"default": _INT8_WEIGHT_ONLY},
                "modules_to_not_convert": None,
            }
        },
    ),
)
