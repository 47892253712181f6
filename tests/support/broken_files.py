"""Safetensors files that break one rule of the format: a real file's header and data, changed and written back."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RawFile", "change_fields", "header_length", "raw_file", "write_file"]

Fields = dict[str, Any]


@dataclass
class RawFile:
    """A file's header as it stands in the JSON, in order, and the bytes after it."""

    fields: dict[str, Fields]
    data: bytes

    def text(self) -> str:
        """The header as JSON."""
        return json.dumps(self.fields, separators=(",", ":"))

    def without(self, *keys: str) -> "RawFile":
        """The file that lacks these tensors, well formed."""
        return self.with_tensors({key: self.part(key) for key in self.keys if key not in keys})

    @property
    def keys(self) -> list[str]:
        return [key for key in self.fields if key != "__metadata__"]

    def part(self, key: str) -> tuple[str, list[int], bytes]:
        """dtype, shape and bytes of a tensor."""
        fields = self.fields[key]
        start, stop = fields["data_offsets"]
        return fields["dtype"], fields["shape"], self.data[start:stop]

    def with_tensors(self, tensors: Mapping[str, tuple[str, list[int], bytes]]) -> "RawFile":
        """A well-formed file of other tensors with the same metadata."""
        fields: dict[str, Fields] = {"__metadata__": self.fields["__metadata__"]} if "__metadata__" in self.fields else {}
        at = 0
        for key, (dtype, shape, data) in tensors.items():
            fields[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
            at += len(data)
        return RawFile(fields, b"".join(data for _, _, data in tensors.values()))

    def renamed(self, rename: Callable[[str], str]) -> "RawFile":
        """The same tensors under other names."""
        return RawFile({key if key == "__metadata__" else rename(key): value for key, value in self.fields.items()}, self.data)


def header_length(file: Path) -> int:
    """Bytes of a file before its tensor data."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def raw_file(file: Path) -> RawFile:
    """A well-formed file, taken apart."""
    content = file.read_bytes()
    start = header_length(file)
    return RawFile(json.loads(content[8:start]), content[start:])


def write_file(file: Path, raw: RawFile, *, header: str | bytes | None = None) -> Path:
    """Put a file together; `header` takes the place of the header's own JSON."""
    text = raw.text() if header is None else header
    encoded = text.encode() if isinstance(text, str) else text
    encoded += b" " * (-len(encoded) % 8)
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw.data)
    return file


def change_fields(file: Path, key: str, **changes: Any) -> Path:
    """Replace fields of one tensor's entry in a file's header; the bytes stay."""
    raw = raw_file(file)
    raw.fields[key] |= changes
    return write_file(file, raw)
