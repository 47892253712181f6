"""fp8 with a scale per tensor, as ComfyUI stores it: weight = float(stored) * scale, scale = absmax / largest of the type.

The older convention marks the file with an empty tensor `[prefix]scaled_fp8`, whose dtype tells the format (one with two
elements would ask for arithmetic in full precision), and gives every layer X a float32 `X.scale_weight`. The newer one
(ComfyUI's QUANTIZATION.md) gives every layer `X.weight_scale` and says the format in `X.comfy_quant`: JSON as U8.
"""

import json

from fluxsmith.io.schemes.scheme import Extra, Scheme, Shape, sibling

__all__ = ["SCHEMES"]

_FORMATS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def _whole(shape: Shape) -> None:
    """All elements share one scale."""


def _scaled(name: str, dtype: str) -> Scheme:
    def beside(weight: str, shape: Shape) -> tuple[Extra, ...]:
        return (Extra(sibling(weight, "scale_weight"), "F32", ()),)

    def marker(prefix: str) -> Extra:
        return Extra(f"{prefix}scaled_fp8", dtype, (0,), b"")

    return Scheme(name, dtype, "ComfyUI's scaled fp8: a scale per tensor (scaled_fp8)", per=_whole, beside=beside, marker=marker)


def _mixed(name: str, dtype: str) -> Scheme:
    words = json.dumps({"format": _FORMATS[dtype]}).encode()

    def beside(weight: str, shape: Shape) -> tuple[Extra, ...]:
        return Extra(sibling(weight, "weight_scale"), "F32", ()), Extra(sibling(weight, "comfy_quant"), "U8", (len(words),), words)

    return Scheme(name, dtype, "ComfyUI's newer scaled fp8: a scale per tensor (comfy_quant)", per=_whole, beside=beside)


SCHEMES = (
    _scaled("fp8_scaled", "F8_E4M3"),
    _scaled("fp8_scaled_e5m2", "F8_E5M2"),
    _mixed("fp8_comfy", "F8_E4M3"),
    _mixed("fp8_comfy_e5m2", "F8_E5M2"),
)
