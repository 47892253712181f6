"""Rounding to a type in the middle of a recipe."""

from typing import Literal

from fluxsmith.methods.base import Same, merge_method

__all__ = ["cast"]


@merge_method(propagates=True)
def cast(a: Same, *, dtype: Literal["fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"]) -> Same:
    """The values of `a` rounded to a type, as they are after being saved in it; arithmetic goes on in its own type.

    Values beyond the type's largest become that.
    """
    import torch

    kinds = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    kind = getattr(torch, kinds[dtype])
    largest = torch.finfo(kind).max
    return a.clamp(-largest, largest).to(kind).to(a.dtype)
