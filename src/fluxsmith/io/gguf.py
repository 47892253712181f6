"""Opening a GGUF file by its header: names, shapes, types and offsets, without reading a weight.

Format: ggml's docs/gguf.md, versions 2 and 3. All numbers are little-endian; shapes are stored with the innermost
dimension first. ComfyUI-GGUF stores a tensor whose rows are no whole blocks as rows of 256 and keeps its shape in the
metadata `comfy.gguf.orig_shape.NAME`.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from fluxsmith.errors import FileError
from fluxsmith.io.checkpoint import Checkpoint, Quantised, WeightFile
from fluxsmith.io.codecs.codec import Codec
from fluxsmith.io.codecs.gguf import BLOCKS, require_package
from fluxsmith.io.codecs.recognition import not_read
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.views import Extent, View

__all__ = ["MAGIC", "gguf_checkpoint"]

MAGIC = b"GGUF"
#: The types without blocks: number in the file -> safetensors name.
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
#: Kinds of metadata values, by their number: how struct reads them. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 100_000_000  # bytes of a header
_STEP = 1 << 18
_MOST_DIMS = 8
_DEEPEST = 4  # arrays in arrays

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def gguf_checkpoint(read: Read, file: WeightFile, reference: str) -> Checkpoint:
    """The tensors of a GGUF file, read with `read(offset, length)`; quantised ones have codecs.

    Raises FileError where the header is broken or the file is cut short, IncompatibleError for a type that cannot be
    decoded, UsageError where the package `gguf` is needed and not installed.
    """
    header = _Header(read, file)
    fields, tensors, start = header.parse()
    checkpoint = Checkpoint(reference, (file,), {}, _metadata(fields))
    views: dict[str, View] = {}
    for tensor in tensors:
        if tensor.name in views:
            raise _bad(file, "file.duplicate-key", f"names `{tensor.name}` twice", tensor.name)
        views[tensor.name] = _view(checkpoint, file, start, tensor, fields.get(_ORIGINAL_SHAPE + tensor.name), len(tensors))
    if any(view.coded for view in views.values()):
        require_package()
    scheme = Quantised(f"GGUF ({fields.get('general.architecture', 'no architecture named')})", views)
    return Checkpoint(reference, (file,), views, checkpoint.metadata, quantised=scheme)


def _metadata(fields: dict[str, Any]) -> dict[str, str]:
    """The metadata as text, as safetensors have them, without shapes of tensors and long lists (vocabularies)."""
    return {
        key: str(value)
        for key, value in fields.items()
        if not key.startswith(_ORIGINAL_SHAPE) and not (isinstance(value, list) and len(cast("list[Any]", value)) > 64)
    }


def _view(checkpoint: Checkpoint, file: WeightFile, start: int, tensor: _Tensor, original: object, among: int) -> View:
    count = prod(tensor.shape)
    if tensor.kind in PLAIN:
        dtype, codec = PLAIN[tensor.kind], None
        nbytes = DTYPES[dtype].nbytes(count)
    elif tensor.kind in BLOCKS:
        name, block, block_bytes = BLOCKS[tensor.kind]
        if count % block:
            raise _bad(file, "file.bad-header", f"gives `{tensor.name}` {count} elements, no whole blocks of {block}", tensor.name)
        dtype, codec = "BF16", Codec("gguf", name, count, tensor.shape[-1], block, block_bytes)
        nbytes = codec.byte(count)
    else:
        raise not_read(checkpoint, f"GGUF type {tensor.kind}", tensor.name, among)
    if start + tensor.offset + nbytes > file.size:
        needs = f"`{tensor.name}` ends at byte {start + tensor.offset + nbytes:,}, the file has {file.size:,}"
        raise _bad(file, "file.truncated", f"is cut short: {needs}", tensor.name)
    shape = tensor.shape
    if isinstance(original, list):
        shape = tuple(cast("list[int]", original))
        if prod(shape) != count:
            raise _bad(file, "file.bad-header", f"says that `{tensor.name}` was {list(shape)}, but holds {count} elements", tensor.name)
    return View(shape, (Extent(file.path, start + tensor.offset, count, dtype, codec),))


def _bad(file: WeightFile, code: str, what: str, key: str | None = None) -> FileError:
    facts = {"file": file.path} | ({"key": key} if key else {})
    return FileError(code, f"{file.path} {what}", facts=facts, fix="download or write the file again")


class _Header:
    """The header of a file, read from front to back."""

    def __init__(self, read: Read, file: WeightFile) -> None:
        self._read, self._file = read, file
        self._data, self._at = b"", 0

    def parse(self) -> tuple[dict[str, Any], list[_Tensor], int]:
        """Metadata, tensors in the order of the file, and where their data begin."""
        magic, version = self._take(4), self._number("I")
        if magic != MAGIC or version not in (2, 3):
            raise _bad(self._file, "file.bad-header", f"is a GGUF file of version {version}; versions 2 and 3 are read")
        tensors, fields = self._number("Q"), self._number("Q")
        metadata = dict(self._field() for _ in range(fields))
        found = [self._tensor() for _ in range(tensors)]
        if not found:
            raise FileError(
                "file.no-weights", f"{self._file.path} holds no tensors", facts={"file": self._file.path}, fix="use the complete checkpoint"
            )
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _bad(self._file, "file.bad-header", f"has the alignment {alignment}")
        return metadata, found, -(-self._at // alignment) * alignment

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > min(self._file.size, _LONGEST):
            raise _bad(self._file, "file.truncated", f"is cut short: its header needs more than {min(self._file.size, _LONGEST):,} bytes")
        while len(self._data) < end:
            more = self._read(len(self._data), min(max(_STEP, end - len(self._data)), self._file.size - len(self._data)))
            if not more:
                raise _bad(self._file, "file.truncated", "became shorter while it was read")
            self._data += more
        taken, self._at = self._data[self._at : end], end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode(errors="replace")

    def _field(self) -> tuple[str, Any]:
        return self._text(), self._value(self._number("I"))

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or depth > _DEEPEST:
            raise _bad(self._file, "file.bad-header", f"has metadata of a kind that GGUF does not have ({kind})")
        inner, count = self._number("I"), self._number("Q")
        if inner in _SCALARS:
            form = f"{count}{_SCALARS[inner]}" if count < _LONGEST else "Q"
            raw = self._take(count * struct.calcsize("<" + _SCALARS[inner]))
            return list(struct.unpack("<" + form, raw))
        return [self._value(inner, depth + 1) for _ in range(count)]

    def _tensor(self) -> _Tensor:
        name, dims = self._text(), self._number("I")
        if dims > _MOST_DIMS:
            raise _bad(self._file, "file.bad-header", f"gives `{name}` {dims} dimensions", name)
        shape = tuple(self._number("Q") for _ in range(dims))[::-1]
        return _Tensor(name, shape, self._number("I"), self._number("Q"))
