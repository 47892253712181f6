"""In which of the schemes that are written a checkpoint is stored, so that what is made of it can be stored alike."""

from collections.abc import Collection

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.codecs.codec import Codec
from fluxsmith.io.dtypes import BLOCK_TYPES
from fluxsmith.io.schemes.sd_scripts import BLOCK

__all__ = ["scheme_of"]


def scheme_of(checkpoint: Checkpoint) -> str | None:
    """The name of the scheme in which most quantised weights of a checkpoint are; None where that is none that is written."""
    counts: dict[str, int] = {}
    for view in checkpoint.tensors.values():
        for codec in {extent.codec for extent in view.extents if extent.codec}:
            for name in _schemes_of(codec, checkpoint.sides):
                counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name], default="") or None


def _schemes_of(codec: Codec, sides: Collection[str]) -> tuple[str, ...]:
    """The schemes that a tensor speaks for, in a checkpoint with scales and marks of these names; none where it is in none."""
    if codec.scheme == "torchao":
        return ("int8_torchao",)
    if codec.scheme == "gguf":
        return (codec.kind.lower(),) if codec.kind in BLOCK_TYPES else ("",)
    if codec.scheme != "scaled_fp8" or codec.kind not in ("F8_E4M3", "F8_E5M2"):
        return ("",)
    suffix = "_e5m2" if codec.kind == "F8_E5M2" else ""
    every = codec.every("scale")
    if every == 0:
        return ("fp8_comfy" + suffix if any(key.endswith(".weight_scale") for key in sides) else "fp8_scaled" + suffix,)
    if every == codec.columns == BLOCK:  # a row is one block: it may be either
        return "fp8_channel" + suffix, "fp8_block" + suffix
    return ({codec.columns: "fp8_channel" + suffix, BLOCK: "fp8_block" + suffix}.get(every, ""),)
