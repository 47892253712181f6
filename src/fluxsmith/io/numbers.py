"""Small tensors read while a file is opened: numbers that say how others are meant, such as an adapter's alpha."""

import math
import struct

from fluxsmith.errors import FileError
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.memory import buffer, is_memory
from fluxsmith.io.sniff import reading
from fluxsmith.io.views import View

__all__ = ["read_bytes", "read_number"]

_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"}


def read_bytes(view: View) -> bytes:
    """All bytes of a view, as stored. Raises FileError where the file has become shorter."""
    parts: list[bytes] = []
    for extent in view.extents:
        if is_memory(extent.file):
            parts.append(bytes(buffer(extent.file)[extent.offset : extent.offset + extent.nbytes]))
            continue
        with reading(extent.file), open(extent.file, "rb") as file:
            file.seek(extent.offset)
            parts.append(file.read(extent.nbytes))
        if len(parts[-1]) < extent.nbytes:
            raise FileError(
                "file.truncated", f"{extent.file} became shorter while it was read", facts={"file": extent.file}, fix="open it again"
            )
    return b"".join(parts)


def read_number(view: View) -> float | None:
    """The value of a tensor of one element ([] or [1]); None where it holds several, or a type that no number has."""
    if view.count != 1 or not view.extents:
        return None
    (dtype,), raw = view.dtypes, read_bytes(view)
    if dtype == "BF16":  # the upper half of a float32
        return struct.unpack("<f", b"\0\0" + raw)[0]
    if dtype in _FORMATS:
        return float(struct.unpack("<" + _FORMATS[dtype], raw)[0])
    if DTYPES[dtype].torch is None:
        return None
    import torch

    value = torch.frombuffer(bytearray(raw), dtype=getattr(torch, str(DTYPES[dtype].torch))).float()
    return math.nan if not len(value) else float(value[0])
