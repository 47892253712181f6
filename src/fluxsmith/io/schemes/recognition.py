"""In which of the schemes that are written a checkpoint is stored, so that what is made of it can be stored alike."""

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.codecs.codec import Codec
from fluxsmith.io.dtypes import BLOCK_TYPES
from fluxsmith.io.schemes.sd_scripts import BLOCK

__all__ = ["scheme_of"]


def scheme_of(checkpoint: Checkpoint) -> str | None:
    """The name of the scheme in which most quantised weights of a checkpoint are; None where that is none that is written."""
    words = {key.rpartition(".")[2] for key in checkpoint.sides}
    counts: dict[str, int] = {}
    for view in checkpoint.tensors.values():
        for codec in {extent.codec for extent in view.extents if extent.codec}:
            name = _scheme_of(codec, words)
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name], default="") or None


def _scheme_of(codec: Codec, words: set[str]) -> str:
    """The scheme of one tensor, where the checkpoint's scales and marks end in these words; empty where it is none of ours."""
    if codec.scheme == "torchao":
        return "int8_torchao"
    if codec.scheme == "gguf":
        return codec.kind.lower() if codec.kind in BLOCK_TYPES else ""
    if codec.scheme != "scaled_fp8" or codec.kind not in ("F8_E4M3", "F8_E5M2"):
        return ""
    suffix = "_e5m2" if codec.kind == "F8_E5M2" else ""
    every = codec.every("scale")
    if every:
        return {BLOCK: "fp8_block", codec.columns: "fp8_channel"}.get(every, "fp8_block") + suffix
    return ("fp8_comfy" if "weight_scale" in words else "fp8_scaled") + suffix
