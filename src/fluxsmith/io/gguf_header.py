"""The header of a GGUF file (version 3), as it is written: metadata, then name, dims, type and offset of every tensor.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. All numbers are little-endian; dims stand in the order
of ggml, the last of ours first; tensors begin at multiples of ALIGNMENT bytes after the header, which is padded, too.
"""

import struct
from collections.abc import Mapping

from fluxsmith.io.header import TensorEntry

__all__ = ["ALIGNMENT", "GGUF_TYPES", "aligned", "encode_gguf_header"]

ALIGNMENT = 32
#: Numbers of the types that are written (ggml_type).
GGUF_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30}
#: general.file_type by the type of most weights (llama_ftype).
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_UINT32, _STRING = 4, 8


def aligned(offset: int) -> int:
    """The first place at or after `offset` where a tensor may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def encode_gguf_header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the tensor data. `metadata` become strings of the same keys, after the format's own fields."""
    sizes: dict[str, int] = {}
    for entry in tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.stop - entry.start
    most = max(sizes, key=lambda dtype: sizes[dtype], default="F32")
    numbers = {"general.quantization_version": 2, "general.alignment": ALIGNMENT, "general.file_type": _FILE_TYPES[most]}
    fields = [_string(key) + struct.pack("<I", _STRING) + _string(text) for key, text in metadata.items()]
    fields += [_string(key) + struct.pack("<II", _UINT32, number) for key, number in numbers.items()]
    infos = [_info(name, entry) for name, entry in tensors.items()]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(fields)) + b"".join(fields) + b"".join(infos)
    return head + bytes(aligned(len(head)) - len(head))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _info(name: str, entry: TensorEntry) -> bytes:
    dims = entry.shape[::-1] or (1,)
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, GGUF_TYPES[entry.dtype], entry.start)
