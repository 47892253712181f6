"""Reading and writing the header of a safetensors file: 8 bytes of length, then JSON.

Format: https://github.com/huggingface/safetensors (README, "Format"). The checks are those of the format's own
parser, with messages that name the tensor and the cause, plus one that it lacks: a name that stands twice.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from fluxsmith.errors import FileError
from fluxsmith.io.dtypes import DTYPES
from fluxsmith.io.sniff import explain_foreign

__all__ = ["Header", "TensorEntry", "encode_header", "parse_header"]

MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: dtype (safetensors name), shape, and bytes [start, stop) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself; `data_start` is the byte at which tensor data begin."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def parse_header(read: Callable[[int, int], bytes], size: int, name: str) -> Header:
    """The header of a file of `size` bytes, read with `read(offset, length)`.

    Raises FileError (exit code 3) where the file is something else, cut short, or breaks a rule of the format.
    """
    head = read(0, 64)
    foreign = explain_foreign(name, head, size)
    if foreign is not None:
        raise foreign
    if size < 8:
        raise _bad(name, "file.truncated", f"has {size} bytes, too few for a header")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER:
        raise _bad(name, "file.not-safetensors", f"is no safetensors file: its first 8 bytes would mean a header of {length:,} bytes")
    if 8 + length > size:
        raise _bad(name, "file.truncated", f"is cut short: its header needs {8 + length:,} bytes, the file has {size:,}")
    fields = _parse_json(name, read(8, length))
    metadata = _metadata(name, fields.pop("__metadata__", {}))
    tensors = {key: _entry(name, key, value) for key, value in fields.items()}
    _check_coverage(name, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def encode_header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a header, padded with spaces to a multiple of 8, as the format's own writer does."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, entry in tensors.items():
        fields[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.start, entry.stop]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bad(name: str, code: str, what: str, key: str | None = None) -> FileError:
    facts = {"file": name} | ({"key": key} if key else {})
    return FileError(code, f"{name} {what}", facts=facts, fix="download or write the file again")


def _parse_json(name: str, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _bad(name, "file.duplicate-key", f"names `{key}` twice in its header", key)
            found[key] = value
        return found

    try:
        fields = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
        raise _bad(name, "file.bad-header", f"has a header that is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise _bad(name, "file.bad-header", "has a header that is not a JSON object")
    return cast("dict[str, Any]", fields)


def _metadata(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _bad(name, "file.bad-header", "has metadata that is not an object")
    pairs = cast("dict[str, object]", value)
    for key, text in pairs.items():
        if not isinstance(text, str):
            raise _bad(name, "file.bad-header", f"has metadata `{key}` that is not a string", key)
    return cast("dict[str, str]", pairs)


def _entry(name: str, key: str, value: object) -> TensorEntry:
    try:
        fields = cast("dict[str, Any]", value)
        dtype, shape, (start, stop) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        numbers = (*shape, start, stop)
        if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(fields["shape"], list) or not isinstance(dtype, str):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _bad(name, "file.bad-header", f"has no valid dtype, shape and data_offsets for `{key}`", key) from None
    if dtype not in DTYPES:
        raise _bad(name, "file.unknown-dtype", f"stores `{key}` as `{dtype}`, an element type that is not known", key)
    expected = DTYPES[dtype].nbytes(prod(shape))
    if stop - start != expected:
        raise _bad(name, "file.bad-header", f"gives `{key}` {stop - start} bytes where {dtype} {list(shape)} needs {expected}", key)
    return TensorEntry(dtype, shape, start, stop)


def _check_coverage(name: str, tensors: Mapping[str, TensorEntry], data: int) -> None:
    """Tensors must follow each other without holes or overlaps and end where the file ends."""
    at = 0
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < at:
            raise _bad(name, "file.overlap", f"has tensors that overlap: `{key}` begins at {entry.start}, before {at}", key)
        if entry.start > at:
            raise _bad(name, "file.hole", f"has {entry.start - at} bytes before `{key}` that belong to no tensor", key)
        at = entry.stop
    if at > data:
        raise _bad(name, "file.truncated", f"is cut short: its tensors need {at:,} bytes, {data:,} are there")
    if at < data:
        raise _bad(name, "file.trailing-bytes", f"has {data - at:,} bytes after its last tensor")
