"""fp8 with a scale per row, or per 64 weights of a row, as kohya's sd-scripts stores it (library/fp8_optimization_utils.py).

`X.scale_weight` has the shape [out, 1], or [out, in/64, 1]; a layer whose input is no multiple of 64 gets a scale per row
there, too. sd-scripts computes in the type of the scales, which is that of the model: bf16. So the scale is rounded to
bf16 first, and the weights are divided by the scale as it is stored.
"""

from fluxsmith.io.schemes.scheme import Extra, Scheme, Shape, sibling

__all__ = ["BLOCK", "SCHEMES"]

BLOCK = 64


def _row(shape: Shape) -> int:
    return shape[1]


def _block(shape: Shape) -> int:
    return BLOCK if shape[1] % BLOCK == 0 else shape[1]


def _row_scales(weight: str, shape: Shape) -> tuple[Extra, ...]:
    return (Extra(sibling(weight, "scale_weight"), "BF16", (shape[0], 1)),)


def _block_scales(weight: str, shape: Shape) -> tuple[Extra, ...]:
    if shape[1] % BLOCK:
        return _row_scales(weight, shape)
    return (Extra(sibling(weight, "scale_weight"), "BF16", (shape[0], shape[1] // BLOCK, 1)),)


SCHEMES = tuple(
    Scheme(f"{name}{suffix}", dtype, about, per=per, scale_dtype="BF16", beside=beside)
    for name, about, per, beside in (
        ("fp8_channel", "sd-scripts' scaled fp8: a scale per row", _row, _row_scales),
        ("fp8_block", "sd-scripts' scaled fp8: a scale per 64 weights of a row", _block, _block_scales),
    )
    for suffix, dtype in (("", "F8_E4M3"), ("_e5m2", "F8_E5M2"))
)
