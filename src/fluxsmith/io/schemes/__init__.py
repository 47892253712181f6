"""The schemes in which quantised weights are written, one file per convention, as plain data without torch.

scheme.py      what a scheme is
comfy.py       ComfyUI's two conventions of scaled fp8
sd_scripts.py  kohya's scaled fp8
torchao.py     int8 in a diffusers folder
gguf.py        block types of GGUF
recognition.py  in which scheme a checkpoint is stored
"""

from fluxsmith.errors import UsageError, did_you_mean
from fluxsmith.io.dtypes import WRITABLE, dtype_from_name
from fluxsmith.io.schemes import comfy, gguf, sd_scripts, torchao
from fluxsmith.io.schemes.scheme import Extra, Scheme, Shape, Stored

__all__ = ["OUTPUT_TYPES", "SCHEMES", "Extra", "Scheme", "Shape", "Stored", "output_type", "output_type_name"]

#: Every scheme by the name that users write.
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (*comfy.SCHEMES, *sd_scripts.SCHEMES, *torchao.SCHEMES, *gguf.SCHEMES)}
#: What `--dtype` and `output.dtype` may say.
OUTPUT_TYPES = (*WRITABLE, *SCHEMES)


def output_type(name: str) -> str:
    """What an output's dtype means: the name of an element type (`BF16`) or of a scheme (`fp8_scaled`).

    Raises UsageError where the name is neither.
    """
    if name.lower() in SCHEMES:
        return name.lower()
    try:
        return dtype_from_name(name).name
    except UsageError:
        facts = {"known": ", ".join(OUTPUT_TYPES)}
        raise UsageError(
            "dtype.unknown", f"`{name}` is no type of an output", facts=facts, fix=did_you_mean(name, list(OUTPUT_TYPES))
        ) from None


def output_type_name(kind: str) -> str:
    """The name that users write of what `output_type` gave."""
    from fluxsmith.io.dtypes import DTYPES

    return kind if kind in SCHEMES else DTYPES[kind].short
